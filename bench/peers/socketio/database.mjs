// What is stored: one statement, so one round trip and one commit, makes a message durable and gives it its place.
import pg from "pg";

const SCHEMA = `
  CREATE TABLE IF NOT EXISTS rooms (id text PRIMARY KEY, seq bigint NOT NULL DEFAULT 0);
  -- A row is rewritten for each message of its room: with space left on the page no index has to be touched for it.
  ALTER TABLE rooms SET (fillfactor = 50);
  CREATE TABLE IF NOT EXISTS members (
    user_id text NOT NULL, room text NOT NULL REFERENCES rooms, PRIMARY KEY (user_id, room));
  CREATE TABLE IF NOT EXISTS messages (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    room text NOT NULL, seq bigint NOT NULL, sender text NOT NULL, client_message_id text NOT NULL,
    content text NOT NULL, created_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (room, seq), UNIQUE (room, sender, client_message_id));`;

// The places in a room are dense: the update and the insert are one transaction, and the room's row is locked by it.
const SAVE = {
  name: "save",
  text: `WITH place AS (UPDATE rooms SET seq = seq + 1 WHERE id = $1 RETURNING seq)
    INSERT INTO messages (room, seq, sender, client_message_id, content)
    SELECT $1, seq, $2, $3, $4 FROM place RETURNING id, seq`,
};

const FIND = {
  name: "find",
  text: "SELECT id, seq FROM messages WHERE room = $1 AND sender = $2 AND client_message_id = $3",
};

const UNIQUE_VIOLATION = "23505";
// Any number that all processes know; it keeps two of them from making the tables at the same time.
const SCHEMA_LOCK = 4242;

export async function connect(port, connections) {
  const pool = new pg.Pool({ host: "127.0.0.1", port, user: "peers", database: "socketio", max: connections });
  await pool.query(`BEGIN; SELECT pg_advisory_xact_lock(${SCHEMA_LOCK}); ${SCHEMA} COMMIT;`);
  return new Database(pool);
}

class Database {
  constructor(pool) {
    this.pool = pool;
  }

  // The id and the place of the message, the same however often it is sent; `isNew` says whether this was the first time.
  async save(room, sender, clientMessageId, content) {
    try {
      const { rows } = await this.pool.query({ ...SAVE, values: [room, sender, clientMessageId, content] });
      return { ...rows[0], isNew: true };
    } catch (error) {
      if (error.code !== UNIQUE_VIOLATION) throw error;
      const { rows } = await this.pool.query({ ...FIND, values: [room, sender, clientMessageId] });
      return { ...rows[0], isNew: false };
    }
  }

  async makeRoom(memberIds) {
    const id = [...memberIds].sort().join("_");
    await this.pool.query({
      name: "make-room",
      text: `WITH room AS (INSERT INTO rooms (id) VALUES ($1) ON CONFLICT DO NOTHING RETURNING id)
        INSERT INTO members (user_id, room) SELECT unnest($2::text[]), id FROM room`,
      values: [id, memberIds],
    });
    return id;
  }

  async roomsOf(user) {
    const query = { name: "rooms-of", text: "SELECT room FROM members WHERE user_id = $1", values: [user] };
    return (await this.pool.query(query)).rows.map((row) => row.room);
  }
}
