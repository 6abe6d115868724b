// One person's side of one room: what is drawn, what was sent, what is still unanswered. No DOM, no clock, no network,
// so that every mark on the screen can be proved by a test.
//
// Rules it keeps:
//   1. A message is drawn the moment it is written; its `clientMessageId` never changes, however often it is sent.
//   2. `sent` needs the saved id: an ACK, or the message itself in a CHAT or the history.
//   3. `failed` says what is known: never sent, refused, or fate unknown. An attempt that got no answer, or UNAVAILABLE,
//      leaves the fate unknown, and a later refusal of another attempt doesn't change that.
//   4. Saved messages stand in the order of `seq`; what the client has already (id or seq) is dropped.
//   5. `received` and `read` come from the other member's frames only.
//   6. What is held is of one `epoch`: with another one, all saved messages and marks are forgotten, and drafts are kept.

/** How long a sent message may stay ⏳ before it is shown as failed, in milliseconds. */
export const ANSWER_WITHIN_MS = 10_000;

/** 128 random bits as hex. (`crypto.randomUUID` is missing on plain-http addresses other than localhost.) */
export function randomId() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, '0')).join('');
}

/** The length the server counts: UTF-8 bytes. */
export function contentBytes(content) {
  return new TextEncoder().encode(content).length;
}

export class Conversation {
  #me;
  #roomId;
  #newId;
  #saved = new Map(); // seq → message
  #savedIds = new Set();
  #outbox = new Map(); // clientMessageId → draft, in the order written
  #sentCount = 0;
  #epoch = null; // of what is held; null before anything has come
  #from = null; // the lowest seq looked at, minus one; null before the history has come
  #upTo = 0; // everything from #from to here is held
  #earlier = false;
  #marks = { received: 0, read: 0 }; // of the other member

  constructor({ me, roomId, newId = randomId }) {
    this.#me = me;
    this.#roomId = roomId;
    this.#newId = newId;
  }

  get roomId() {
    return this.#roomId;
  }

  /** Whether the first page of history has come. */
  get opened() {
    return this.#from !== null;
  }

  /** Whether the server has messages older than those held. */
  get hasEarlier() {
    return this.#earlier;
  }

  /** The lowest seq held, or null. */
  get firstSeq() {
    return this.#saved.size === 0 ? null : Math.min(...this.#saved.keys());
  }

  /** Everything up to this seq is here: the `afterSeq` of a SYNC and the `seq` of RECEIVED and READ. */
  get upTo() {
    return this.#upTo;
  }

  /** A message beyond `upTo` is here, so one between is missing (or still on its way). */
  get hasGap() {
    for (const seq of this.#saved.keys()) if (seq > this.#upTo) return true;
    return false;
  }

  /** The highest seq up to `upTo` which another user wrote; 0 when there is none. */
  get lastFromOthers() {
    let last = 0;
    for (const { seq, senderId } of this.#saved.values()) {
      if (senderId !== this.#me && seq <= this.#upTo && seq > last) last = seq;
    }
    return last;
  }

  // Writing

  /**
   * Draws a new message. `link` is `up` (a session is open), `coming` (it is being opened) or `down` (switched off).
   * Returns the CHAT frame to send now, or null: with `coming` it goes out after the next WELCOME, with `down` it has failed.
   */
  write(content, link, now) {
    const clientMessageId = this.#newId();
    const draft = { clientMessageId, content, unresolved: 0, sentOrder: null };
    this.#outbox.set(clientMessageId, draft);
    return this.#attempt(draft, link, now);
  }

  /** Tries a failed message again under the same id. Returns the frame to send now, or null. */
  resend(clientMessageId, link, now) {
    const draft = this.#outbox.get(clientMessageId);
    return draft?.state === 'failed' ? this.#attempt(draft, link, now) : null;
  }

  /** The DROP frames for what failed: when its author writes on, it must hold back nothing. */
  drops() {
    const failed = [...this.#outbox.values()].filter((draft) => draft.state === 'failed');
    return failed.map(({ clientMessageId }) => ({ type: 'DROP', chatRoomId: this.#roomId, clientMessageId }));
  }

  /**
   * A new session is open. `again` is what was sent before and never acknowledged, in the order it was first sent: it goes
   * out before the SYNC. `waiting` is what was written meanwhile and never sent: it goes out after.
   */
  connected(now) {
    const drafts = [...this.#outbox.values()];
    const again = drafts.filter((draft) => draft.unresolved > 0).sort((a, b) => a.sentOrder - b.sentOrder);
    const waiting = drafts.filter((draft) => draft.unresolved === 0 && draft.state === 'sending');
    const send = (draft) => this.#attempt(draft, 'up', now);
    return { again: again.map(send), waiting: waiting.map(send) };
  }

  /** The person switched the network off: what was never handed to a socket can't go out any more. */
  disconnected() {
    for (const draft of this.#outbox.values()) if (draft.queued) this.#fail(draft, 'not_connected');
  }

  /** When `expire` is due next (same clock as `now`), or null. */
  get nextDeadline() {
    let next = null;
    for (const { state, deadline } of this.#outbox.values()) {
      if (state === 'sending' && (next === null || deadline < next)) next = deadline;
    }
    return next;
  }

  /** Fails what has been ⏳ for too long. Returns the ids of those. */
  expire(now) {
    const late = [...this.#outbox.values()].filter((draft) => draft.state === 'sending' && draft.deadline <= now);
    for (const draft of late) this.#fail(draft, draft.queued ? 'not_connected' : 'no_answer');
    return late.map((draft) => draft.clientMessageId);
  }

  #attempt(draft, link, now) {
    draft.code = null;
    draft.detail = null;
    if (link === 'down') {
      this.#fail(draft, 'not_connected');
      return null;
    }
    draft.state = 'sending';
    draft.reason = null;
    draft.deadline = now + ANSWER_WITHIN_MS;
    draft.queued = link !== 'up';
    if (draft.queued) return null;
    draft.unresolved += 1;
    draft.sentOrder ??= this.#sentCount++;
    return {
      type: 'CHAT',
      chatRoomId: this.#roomId,
      content: draft.content,
      clientMessageId: draft.clientMessageId,
    };
  }

  #fail(draft, reason, code = null, detail = null) {
    Object.assign(draft, { state: 'failed', reason, code, detail, queued: false });
  }

  // Frames

  /** ACK: the message is saved. A late one turns a failed message into a sent one. */
  acknowledged(frame) {
    const draft = this.#outbox.get(frame.clientMessageId);
    if (!draft || frame.chatRoomId !== this.#roomId) return false;
    this.#save({
      id: frame.id,
      seq: frame.seq,
      senderId: this.#me,
      content: draft.content,
      timestamp: frame.timestamp,
      clientMessageId: frame.clientMessageId,
    });
    return true;
  }

  /** ERROR with a `clientMessageId`: refused, or (`UNAVAILABLE`) fate unknown. */
  refused(frame) {
    const draft = this.#outbox.get(frame.clientMessageId);
    if (!draft) return false;
    if (frame.code === 'UNAVAILABLE') {
      this.#fail(draft, 'unavailable', frame.code, frame.message);
    } else {
      draft.unresolved = Math.max(0, draft.unresolved - 1);
      this.#fail(draft, 'refused', frame.code, frame.message);
    }
    return true;
  }

  /** CHAT, live or by SYNC: `added`, `settled` (it is one of ours that was still open) or `dropped`. */
  chat(frame) {
    if (frame.chatRoomId !== this.#roomId) return 'dropped';
    return this.#save(frame);
  }

  /** What comes from now on is of this epoch. Returns false when what was held is of another one, and was forgotten. */
  inEpoch(epoch = 1) {
    const same = this.#epoch === null || this.#epoch === epoch;
    this.#epoch = epoch;
    if (same) return true;
    this.#saved.clear();
    this.#savedIds.clear();
    this.#from = null;
    this.#upTo = 0;
    this.#earlier = false;
    this.#marks = { received: 0, read: 0 };
    return false;
  }

  /** A page of history, in either order, as it came over HTTP. */
  history({ messages, hasMore, epoch }) {
    this.inEpoch(epoch);
    for (const message of messages) this.#save(message);
    const lowest = messages.reduce((low, { seq }) => Math.min(low, seq), Infinity);
    if (this.#from === null) {
      this.#from = Number.isFinite(lowest) ? lowest - 1 : 0;
      this.#upTo = this.#from;
      this.#advance();
    } else if (lowest - 1 < this.#from) {
      this.#from = lowest - 1;
    }
    this.#earlier = hasMore;
  }

  /** SYNCED for this room. Returns true when there is more to ask for. */
  synced(frame) {
    const room = frame.rooms?.find(({ chatRoomId }) => chatRoomId === this.#roomId);
    if (!room || !this.inEpoch(room.epoch)) return room !== undefined;
    this.#upTo = Math.max(this.#upTo, room.seq); // all up to there came before this frame
    this.#advance();
    return room.complete === false;
  }

  /** RECEIVED or READ of the other member. */
  marked(frame) {
    if (frame.chatRoomId !== this.#roomId || frame.userId === this.#me) return;
    this.#marks.received = Math.max(this.#marks.received, frame.seq);
    if (frame.type === 'READ') this.#marks.read = Math.max(this.#marks.read, frame.seq);
  }

  #save(message) {
    const mine = message.senderId === this.#me;
    const settled = mine && this.#outbox.delete(message.clientMessageId);
    if (this.#saved.has(message.seq) || this.#savedIds.has(message.id)) return settled ? 'settled' : 'dropped';
    this.#saved.set(message.seq, message);
    this.#savedIds.add(message.id);
    if (this.opened) this.#advance();
    return settled ? 'settled' : 'added';
  }

  #advance() {
    while (this.#saved.has(this.#upTo + 1)) this.#upTo += 1;
  }

  // Drawing

  /** What the screen shows, top to bottom: the saved messages by seq, then the unsettled ones as written. */
  items() {
    const saved = [...this.#saved.values()].sort((a, b) => a.seq - b.seq).map((message) => this.#savedItem(message));
    return [...saved, ...Array.from(this.#outbox.values(), (draft) => this.#draftItem(draft))];
  }

  #savedItem({ id, seq, senderId, senderName, content, timestamp, clientMessageId, deletedAt }) {
    const mine = senderId === this.#me;
    const mark = seq <= this.#marks.read ? 'read' : seq <= this.#marks.received ? 'received' : null;
    return {
      key: mine ? `own ${clientMessageId}` : `saved ${id}`,
      mine,
      state: mine ? 'sent' : 'received',
      mark: mine ? mark : null,
      id, seq, senderId, senderName, content, timestamp, clientMessageId, deletedAt,
    };
  }

  #draftItem({ clientMessageId, content, state, queued, reason, code, detail, unresolved }) {
    return {
      key: `own ${clientMessageId}`,
      mine: true,
      state,
      queued,
      mark: null,
      reason,
      code,
      detail,
      fateUnknown: state === 'failed' && unresolved > 0,
      senderId: this.#me,
      content, clientMessageId,
    };
  }
}
