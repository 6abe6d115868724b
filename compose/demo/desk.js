// The phone that lies on a person's desk: registers itself, and shows the pushes which reached it, newest on top.

import { registerPhone } from './server.js';
import { onLanguage, timeText, words } from './words.js';

const REOPEN_MS = 3_000;
const KEPT = 30;

export class Phone {
  #part;
  #root;
  #userId;
  #token;
  #name;
  #onCount;
  #registered = false;
  #source = null;
  #timer = null;
  #pushes = []; // newest first
  #seen = new Set();
  #fresh = 0;

  /** `onCount` is told how many pushes came in since `looked` was last called. */
  constructor(root, { userId, token, name, onCount }) {
    this.#root = root;
    this.#userId = userId;
    this.#token = token;
    this.#name = name;
    this.#onCount = onCount;
    this.#part = Object.fromEntries(
      Array.from(root.querySelectorAll('[data-role]'), (part) => [part.dataset.role, part]),
    );
    root.addEventListener('animationend', () => root.classList.remove('buzzing'));
    onLanguage(() => this.#translate());
    setInterval(() => this.#showClock(), 1_000);
    this.#register();
    // A browser allows few open streams per server; a hidden tab gives its own back. What it missed is replayed.
    document.addEventListener('visibilitychange', () => (document.hidden ? this.#close() : this.#open()));
    if (!document.hidden) this.#open();
  }

  looked() {
    this.#fresh = 0;
    this.#onCount(0);
  }

  /** Again until it works: a phone that is not registered gets nothing. */
  async #register() {
    if (this.#registered) return;
    try {
      await registerPhone(this.#token, this.#userId);
      this.#registered = true;
      this.#draw();
    } catch {
      setTimeout(() => this.#register(), REOPEN_MS);
    }
  }

  #open() {
    this.#close();
    const source = new EventSource(`/demo/pushes?userId=${encodeURIComponent(this.#userId)}`);
    this.#source = source;
    source.onopen = () => this.#draw();
    source.onmessage = ({ data, lastEventId }) => this.#push(JSON.parse(data), lastEventId);
    source.onerror = () => {
      this.#draw();
      if (source.readyState === EventSource.CLOSED && source === this.#source) {
        this.#timer = setTimeout(() => this.#open(), REOPEN_MS);
      }
    };
  }

  #close() {
    clearTimeout(this.#timer);
    this.#source?.close();
    this.#source = null;
  }

  #push(push, eventId) {
    // The message id too: event ids may begin anew with the server.
    const key = `${eventId} ${push.data?.messageId}`;
    if (this.#seen.has(key)) return;
    this.#seen.add(key);
    this.#pushes = [{ ...push, eventId }, ...this.#pushes].slice(0, KEPT);
    const { pushes } = this.#part;
    pushes.prepend(this.#card(this.#pushes[0]));
    if (pushes.childElementCount > KEPT) pushes.lastElementChild.remove();
    this.#draw();
    if (push.replayed) return;
    this.#buzz();
    this.#fresh += 1;
    this.#onCount(this.#fresh);
  }

  #buzz() {
    this.#root.classList.remove('buzzing');
    void this.#root.offsetWidth; // so that a second push in a row starts the animation again
    this.#root.classList.add('buzzing');
    this.#part.pushes.firstElementChild?.classList.add('fresh');
  }

  #draw() {
    const { phoneEmpty } = this.#part;
    const open = this.#registered && this.#source?.readyState === EventSource.OPEN;
    this.#root.dataset.stream = open ? 'open' : 'closed';
    phoneEmpty.hidden = open && this.#pushes.length > 0;
    phoneEmpty.textContent = open ? words().phoneEmpty(this.#name) : words().phoneWaiting;
  }

  #translate() {
    const { phoneName, pushes } = this.#part;
    phoneName.textContent = words().phoneOf(this.#name);
    pushes.setAttribute('aria-label', words().phoneOf(this.#name));
    pushes.replaceChildren(...this.#pushes.map((push) => this.#card(push)));
    this.#draw();
    this.#showClock();
  }

  #card({ title, body, data, receivedAt, eventId }) {
    const card = document.createElement('li');
    card.dataset.role = 'push';
    card.dataset.eventId = eventId;
    if (data?.messageId) card.dataset.messageId = data.messageId;
    const part = (name, role, text) => {
      const made = document.createElement(name);
      made.dataset.role = role;
      made.textContent = text;
      card.append(made);
      return made;
    };
    part('strong', 'pushTitle', title);
    part('time', 'pushTime', timeText(receivedAt)).dateTime = receivedAt;
    part('p', 'pushBody', body);
    return card;
  }

  #showClock() {
    const now = timeText(Date.now());
    if (this.#part.clock.textContent !== now) this.#part.clock.textContent = now;
  }
}
