// One of the two people: joins the connection, the conversation and the screen.

import { Connection, backoff } from './connection.js';
import { Conversation, contentBytes } from './conversation.js';
import { history } from './server.js';

const TYPING_SHOWN_MS = 3_000;
const TYPING_EVERY_MS = 2_000;
const GAP_TIMEOUT_MS = 2_000;
const SYNC_WITHIN_MS = 10_000;

export class Person {
  #id;
  #token;
  #screen;
  #conversation;
  #connection;
  #openRoom;
  #maxContentBytes = null;
  #maxFrameBytes = null;
  #told = { received: 0, read: 0 };
  #watched = false;
  #loadingEarlier = false;
  #typingSentAt = -Infinity;
  #timers = {};
  #syncFailures = 0;

  /** `openRoom` resolves when the room exists on the server. */
  constructor({ id, roomId, token, openRoom, screen }) {
    this.#id = id;
    this.#token = token;
    this.#openRoom = openRoom;
    this.#screen = screen;
    this.#conversation = new Conversation({ me: id, roomId });
    this.#connection = new Connection({
      url: `${location.protocol === 'https:' ? 'wss' : 'ws'}://${location.host}/ws`,
      prepare: () => this.#prepare(),
      dropToken: () => token.drop(),
      onState: (state) => this.#stateChanged(state),
      onFrame: (frame) => this.#frame(frame),
    });
    screen.on({
      send: (content) => this.#write(content),
      resend: (clientMessageId) => this.#resend(clientMessageId),
      power: (on) => (on ? this.#connection.start() : this.#connection.stop()),
      typing: () => this.#typing(),
      earlier: () => this.#earlier(),
      watched: (yes) => this.#isWatched(yes),
    });
    addEventListener('online', () => this.#connection.hurry());
    this.#draw();
  }

  start() {
    this.#connection.start();
  }

  async #prepare() {
    await this.#openRoom();
    if (!this.#conversation.opened) {
      this.#conversation.history(await history(this.#token, this.#conversation.roomId));
      this.#draw();
    }
    return this.#token.get();
  }

  // The connection

  #stateChanged(state) {
    if (state.name !== 'connected') {
      this.#clear('sync');
      this.#clear('typing');
      this.#screen.typing(null);
    }
    if (state.name === 'offline' || state.name === 'replaced') this.#conversation.disconnected();
    this.#screen.connection(state);
    this.#draw();
  }

  #frame(frame) {
    const conversation = this.#conversation;
    switch (frame.type) {
      case 'WELCOME':
        this.#welcomed(frame);
        break;
      case 'ACK':
        conversation.acknowledged(frame);
        break;
      case 'CHAT':
        conversation.chat(frame);
        if (frame.senderId !== this.#id) this.#screen.typing(null);
        break;
      case 'RECEIVED':
      case 'READ':
        conversation.marked(frame);
        break;
      case 'TYPING':
        this.#otherTypes(frame);
        return;
      case 'SYNCED':
        this.#clear('sync');
        this.#syncFailures = 0;
        if (conversation.synced(frame)) this.#sync();
        break;
      case 'RESYNC':
        if (!frame.rooms || frame.rooms.includes(conversation.roomId)) {
          this.#after('sync', Math.random() * (frame.retryAfterMs ?? 0), () => this.#sync());
        }
        return;
      case 'ERROR':
        if (frame.clientMessageId !== undefined) conversation.refused(frame);
        else if (this.#timers.sync !== undefined) this.#syncLater(frame.retryAfterMs);
        break;
      default:
        return;
    }
    this.#tell();
    this.#mindTheGap();
    this.#draw();
  }

  #welcomed(frame) {
    this.#maxContentBytes = frame.maxContentBytes;
    this.#maxFrameBytes = frame.maxFrameBytes;
    this.#told = { received: 0, read: 0 };
    this.#screen.limit(frame.maxContentBytes);
    const isKnown = this.#conversation.inEpoch(frame.epoch);
    const { again, waiting } = this.#conversation.connected(Date.now());
    for (const chat of again) this.#connection.send(chat);
    if (isKnown) this.#sync();
    else this.#load();
    for (const chat of waiting) this.#connection.send(chat);
  }

  /** The server was restored from a backup: what was held is forgotten, and the newest page comes first again. */
  async #load() {
    try {
      this.#conversation.history(await history(this.#token, this.#conversation.roomId));
    } catch {
      this.#syncFailures += 1;
      this.#after('sync', backoff(this.#syncFailures), () => this.#load());
      return;
    }
    this.#draw();
    this.#sync();
  }

  #sync() {
    const { roomId, upTo } = this.#conversation;
    this.#connection.send({ type: 'SYNC', rooms: [{ chatRoomId: roomId, afterSeq: upTo }] });
    this.#after('sync', SYNC_WITHIN_MS, () => this.#sync());
  }

  #syncLater(retryAfterMs) {
    this.#syncFailures += 1;
    this.#after('sync', (retryAfterMs ?? 0) + backoff(this.#syncFailures), () => this.#sync());
  }

  /** A gap mostly closes by itself within moments (an ACK overtook a CHAT); one that stays is asked for. */
  #mindTheGap() {
    if (!this.#conversation.hasGap) this.#clear('gap');
    else if (this.#timers.gap === undefined) this.#after('gap', GAP_TIMEOUT_MS, () => this.#sync());
  }

  // Marks

  #isWatched(yes) {
    this.#watched = yes;
    this.#tell();
  }

  #tell() {
    const seq = this.#conversation.lastFromOthers;
    const chatRoomId = this.#conversation.roomId;
    for (const mark of this.#watched ? ['received', 'read'] : ['received']) {
      if (seq > this.#told[mark] && this.#connection.send({ type: mark.toUpperCase(), chatRoomId, seq })) {
        this.#told[mark] = seq;
      }
    }
  }

  // Writing

  /** Returns null when the message was taken, else why not. */
  #write(content) {
    const bytes = contentBytes(content);
    const asFrame = contentBytes(JSON.stringify(content)) + 256; // 256: room for the other fields
    if (this.#maxContentBytes !== null && bytes > this.#maxContentBytes) return 'too_long';
    if (this.#maxFrameBytes !== null && asFrame > this.#maxFrameBytes) return 'too_long';
    for (const drop of this.#conversation.drops()) this.#connection.send(drop);
    const chat = this.#conversation.write(content, this.#connection.link, Date.now());
    this.#typingSentAt = -Infinity;
    this.#draw();
    if (chat) this.#connection.send(chat);
    return null;
  }

  #resend(clientMessageId) {
    const chat = this.#conversation.resend(clientMessageId, this.#connection.link, Date.now());
    this.#draw();
    if (chat) this.#connection.send(chat);
  }

  #typing() {
    const now = Date.now();
    if (now - this.#typingSentAt < TYPING_EVERY_MS) return;
    if (this.#connection.send({ type: 'TYPING', chatRoomId: this.#conversation.roomId })) this.#typingSentAt = now;
  }

  #otherTypes({ chatRoomId, userId }) {
    if (chatRoomId !== this.#conversation.roomId || userId === this.#id) return;
    this.#screen.typing(userId);
    this.#after('typing', TYPING_SHOWN_MS, () => this.#screen.typing(null));
  }

  async #earlier() {
    if (this.#loadingEarlier) return;
    this.#loadingEarlier = true;
    this.#draw();
    try {
      this.#conversation.history(await history(this.#token, this.#conversation.roomId, this.#conversation.firstSeq));
    } catch {
      this.#screen.earlierFailed();
    }
    this.#loadingEarlier = false;
    this.#draw();
  }

  // Drawing

  #draw() {
    const { nextDeadline } = this.#conversation;
    this.#clear('expire');
    if (nextDeadline !== null) {
      this.#after('expire', Math.max(0, nextDeadline - Date.now()), () => {
        this.#conversation.expire(Date.now());
        this.#draw();
      });
    }
    this.#screen.draw({
      opened: this.#conversation.opened,
      items: this.#conversation.items(),
      hasEarlier: this.#conversation.hasEarlier,
      canLoadEarlier: this.#connection.link === 'up' && !this.#loadingEarlier,
    });
  }

  #after(name, delay, action) {
    this.#clear(name);
    this.#timers[name] = setTimeout(() => {
      delete this.#timers[name];
      action();
    }, delay);
  }

  #clear(name) {
    clearTimeout(this.#timers[name]);
    delete this.#timers[name];
  }
}
