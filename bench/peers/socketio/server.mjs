// One of the two processes of the Socket.IO peer: stores each message in PostgreSQL, then emits it, then acknowledges it.
import { createServer } from "node:http";
import { createAdapter } from "@socket.io/redis-adapter";
import jwt from "jsonwebtoken";
import { createClient } from "redis";
import { Server } from "socket.io";
import { connect } from "./database.mjs";

const secret = process.env.NARU_JWT_SECRET;
const MAX_CONTENT_BYTES = 8192;

const database = await connect(
  Number(process.env.PEERS_POSTGRES_PORT),
  Number(process.env.PEERS_POOL ?? 10),
);
const publisher = createClient({ url: `redis://127.0.0.1:${process.env.PEERS_REDIS_PORT}` });
const subscriber = publisher.duplicate();
await Promise.all([publisher.connect(), subscriber.connect()]);

const userOf = (token) => jwt.verify(token, secret, { algorithms: ["HS256"] }).sub;

// POST /api/rooms, with the body and the answer that Naru's has.
const http = createServer(async (request, response) => {
  const answer = (status, value) => {
    const body = JSON.stringify(value);
    response.writeHead(status, { "content-type": "application/json", "content-length": Buffer.byteLength(body) });
    response.end(body);
  };
  try {
    if (request.method === "GET") return answer(200, {});
    const user = userOf(request.headers.authorization?.replace("Bearer ", ""));
    const chunks = await request.toArray();
    const { memberIds } = JSON.parse(Buffer.concat(chunks));
    if (!memberIds.includes(user)) return answer(403, { code: "FORBIDDEN" });
    answer(201, { id: await database.makeRoom(memberIds) });
  } catch (error) {
    answer(error instanceof jwt.JsonWebTokenError ? 401 : 500, { code: error.message });
  }
});

// Only WebSocket: long polling would need sessions that stick to a process, and costs more.
const io = new Server(http, { adapter: createAdapter(publisher, subscriber), transports: ["websocket"], serveClient: false });

io.use((socket, next) => {
  try {
    socket.data.user = userOf(socket.handshake.auth.token);
    next();
  } catch (error) {
    next(error);
  }
});

io.use(async (socket, next) => {
  try {
    await socket.join(await database.roomsOf(socket.data.user));
    next();
  } catch (error) {
    next(error);
  }
});

io.on("connection", (socket) => {
  const sender = socket.data.user;
  socket.on("chat", async ({ room, content, clientMessageId }, acknowledge) => {
    if (typeof content !== "string" || content.length > MAX_CONTENT_BYTES) return acknowledge({ code: "BAD_CONTENT" });
    if (!socket.rooms.has(room)) return acknowledge({ code: "NOT_A_MEMBER" });
    try {
      const { id, seq, isNew } = await database.save(room, sender, clientMessageId, content);
      if (isNew) socket.to(room).emit("chat", { id, seq, room, sender, content, clientMessageId });
      acknowledge({ id, seq });
    } catch (error) {
      console.error(error);
      acknowledge({ code: "UNAVAILABLE" });
    }
  });
});

http.listen(Number(process.argv[2]), "127.0.0.1", () => console.log(`listening on http://127.0.0.1:${process.argv[2]}`));

process.on("SIGTERM", () => process.exit(0));
