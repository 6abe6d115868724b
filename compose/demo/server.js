// The demo's HTTP calls: a token, the room, the history, the phone.

async function answer(response) {
  if (response.ok) return response.json();
  throw Object.assign(new Error(`HTTP ${response.status}`), { status: response.status });
}

function postJson(path, body, token) {
  const headers = { 'content-type': 'application/json', ...(token && { authorization: `Bearer ${token}` }) };
  return fetch(path, { method: 'POST', headers, body: JSON.stringify(body) }).then(answer);
}

/** Keeps one user's token until shortly before it expires. */
export class Token {
  static #SPARE_MS = 30_000;
  #userId;
  #held = null;

  constructor(userId) {
    this.#userId = userId;
  }

  async get() {
    if (!this.#held || Date.parse(this.#held.expiresAt) - Date.now() < Token.#SPARE_MS) {
      this.#held = await postJson('/demo/token', { userId: this.#userId });
    }
    return this.#held.token;
  }

  drop() {
    this.#held = null;
  }

  /** Calls `request(token)`; once more with a new token when the server answers 401. */
  async with(request) {
    try {
      return await request(await this.get());
    } catch (error) {
      if (error.status !== 401) throw error;
      this.drop();
      return request(await this.get());
    }
  }
}

/** Makes the room, or finds it. */
export function openRoom(token, memberIds) {
  return token.with((jwt) => postJson('/api/rooms', { memberIds }, jwt));
}

/** Registers the phone on a person's desk, as its app does at every start: its pushes go there. */
export async function registerPhone(token, userId) {
  const phone = await fetch(`/demo/phone?userId=${encodeURIComponent(userId)}`).then(answer);
  const { deviceId, platform, token: pushToken } = phone;
  const body = JSON.stringify({ platform, token: pushToken, locale: navigator.language });
  const request = (jwt) =>
    fetch(`/api/devices/${encodeURIComponent(deviceId)}`, {
      method: 'PUT',
      headers: { 'content-type': 'application/json', authorization: `Bearer ${jwt}` },
      body,
    }).then(answer);
  return token.with(request);
}

/** `{messages, hasMore}`, newest first; with `beforeSeq`, what is older than that. */
export function history(token, roomId, beforeSeq = null) {
  const query = new URLSearchParams({ limit: '50', ...(beforeSeq !== null && { beforeSeq: String(beforeSeq) }) });
  const path = `/api/rooms/${encodeURIComponent(roomId)}/messages?${query}`;
  return token.with((jwt) => fetch(path, { headers: { authorization: `Bearer ${jwt}` } }).then(answer));
}
