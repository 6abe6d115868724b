// One session with the gateway: opens it, keeps it open while it is wanted, and tells the truth about its state.
//
// States: `connecting` (first try since switched on), `connected` (WELCOME has come), `reconnecting` (it was lost or the
// first try failed), `offline` (switched off), `replaced` (4409: the same device connected elsewhere).

const WELCOME_WITHIN_MS = 10_000;
const STABLE_AFTER_MS = 10_000;
const FIRST_DELAY_MS = 500;
const LONGEST_DELAY_MS = 5_000; // short: the server of a demo is close, and its user looks at the page
const TRY_LATER_FAILURES = 3; // a full server is given as much time as after three failures

const CLOSE = { normal: 1000, tryLater: 1013, tokenExpired: 4401, replaced: 4409 };

/** The wait before try number `failures` + 1: half fixed, half random, so that clients of one server don't return as one. */
export function backoff(failures, random = Math.random) {
  const ceiling = Math.min(LONGEST_DELAY_MS, FIRST_DELAY_MS * 2 ** Math.min(failures, 10));
  return ceiling / 2 + random() * (ceiling / 2);
}

export class Connection {
  #url;
  #prepare;
  #dropToken;
  #onState;
  #onFrame;
  #wanted = false;
  #socket = null;
  #try = 0; // numbers the tries, so that what belongs to an abandoned one is ignored
  #failures = 0;
  #timer = null;
  #pinger = null;
  #unansweredPings = 0;
  #connectedAt = 0;
  #state = { name: 'offline' };

  /**
   * `prepare` resolves to a token when everything needed before the socket (token, room, history) is there;
   * `dropToken` forgets a token that the server doesn't take any more.
   */
  constructor({ url, prepare, dropToken, onState, onFrame }) {
    this.#url = url;
    this.#prepare = prepare;
    this.#dropToken = dropToken;
    this.#onState = onState;
    this.#onFrame = onFrame;
  }

  get state() {
    return this.#state;
  }

  /** `up`, `coming` or `down`: what a message written now can expect. */
  get link() {
    if (this.#state.name === 'connected' && this.#socket?.readyState === WebSocket.OPEN) return 'up';
    return this.#wanted ? 'coming' : 'down';
  }

  start() {
    if (this.#wanted) return;
    this.#wanted = true;
    this.#failures = 0;
    this.#setState({ name: 'connecting' });
    this.#open();
  }

  stop() {
    this.#wanted = false;
    this.#abandon(CLOSE.normal);
    this.#setState({ name: 'offline' });
  }

  /** The device says that its network is back: no reason to wait out the delay. */
  hurry() {
    if (this.#wanted && !this.#socket && this.#timer !== null) this.#open();
  }

  /** Whether the frame was handed to an open socket. (No promise that it arrived: only an answer is one.) */
  send(frame) {
    if (this.link !== 'up') return false;
    this.#socket.send(JSON.stringify(frame));
    return true;
  }

  async #open() {
    this.#abandon();
    const thisTry = this.#try;
    let token;
    try {
      token = await this.#prepare();
    } catch {
      if (thisTry === this.#try) this.#lost();
      return;
    }
    if (thisTry !== this.#try) return;

    const socket = new WebSocket(this.#url, ['naru.v1', `bearer.${token}`]);
    this.#socket = socket;
    const mine = (handler) => (event) => thisTry === this.#try && handler(event);
    socket.onmessage = mine(({ data }) => this.#frame(data));
    socket.onclose = mine(({ code }) => this.#closed(code));
    this.#timer = setTimeout(mine(() => this.#lost()), WELCOME_WITHIN_MS);
  }

  #frame(data) {
    this.#unansweredPings = 0;
    let frame;
    try {
      frame = JSON.parse(data);
    } catch {
      return;
    }
    if (frame.type === 'WELCOME') {
      clearTimeout(this.#timer);
      this.#timer = null;
      this.#connectedAt = Date.now();
      this.#watch(frame.pingSeconds);
      this.#setState({ name: 'connected', sessionId: frame.sessionId });
    }
    this.#onFrame(frame);
  }

  /** A browser never sees the server's pings, so it asks by itself; two questions without any answer mean a dead socket. */
  #watch(pingSeconds) {
    this.#unansweredPings = 0;
    this.#pinger = setInterval(() => {
      if (this.#unansweredPings >= 2) return this.#lost();
      this.#unansweredPings += 1;
      this.send({ type: 'PING' });
    }, (pingSeconds || 25) * 1000);
  }

  #closed(code) {
    const welcomed = this.#state.name === 'connected';
    if (code === CLOSE.replaced) {
      this.#wanted = false;
      this.#abandon();
      this.#setState({ name: 'replaced' });
      return;
    }
    // A refused handshake (401) looks to a browser like any failed one, so a token that got no WELCOME is not used again.
    if (code === CLOSE.tokenExpired || !welcomed) this.#dropToken();
    if (code === CLOSE.tokenExpired && this.#stable()) {
      this.#setState({ name: 'reconnecting' });
      this.#open();
      return;
    }
    this.#lost(code === CLOSE.tryLater ? TRY_LATER_FAILURES : 0);
  }

  #lost(atLeast = 0) {
    this.#failures = Math.max(atLeast, this.#stable() ? 0 : this.#failures + 1);
    this.#abandon();
    this.#setState({ name: 'reconnecting' });
    this.#timer = setTimeout(() => this.#open(), backoff(this.#failures));
  }

  #stable() {
    return this.#state.name === 'connected' && Date.now() - this.#connectedAt >= STABLE_AFTER_MS;
  }

  #abandon(code = CLOSE.normal) {
    this.#try += 1;
    clearTimeout(this.#timer);
    clearInterval(this.#pinger);
    this.#timer = null;
    this.#pinger = null;
    const socket = this.#socket;
    this.#socket = null;
    socket?.close(code);
  }

  #setState(state) {
    this.#state = state;
    this.#onState(state);
  }
}
