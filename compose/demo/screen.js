// What one person sees: the connection, the messages and the composer. Text goes in by `textContent` only.

import { contentBytes } from './conversation.js';
import { onLanguage, timeText, words } from './words.js';

const NEAR_BOTTOM_PX = 80;
const SHOWN_FROM = 0.8; // of the limit: from there on the byte count is shown
const MARKS = { sending: '⏳', sent: '✓✓', failed: '⚠️' };

/** Why a message failed, in words which claim no more than is known. */
function failure({ reason, code, fateUnknown }) {
  switch (reason) {
    case 'not_connected':
      return fateUnknown ? words().notConnectedNow : words().notSent;
    case 'no_answer':
      return words().noAnswer;
    case 'unavailable':
      return words().unavailable;
    default:
      return fateUnknown ? words().refusedAgain(code) : words().refused(code);
  }
}

function element(name, role, className = role) {
  const made = document.createElement(name);
  if (role) made.dataset.role = role;
  if (className) made.className = className;
  return made;
}

export class Screen {
  #part;
  #name;
  #otherName;
  #otherId;
  #handlers = {};
  #bubbles = new Map(); // key → {element, drawn}
  #view = { opened: false, items: [], hasEarlier: false, canLoadEarlier: false };
  #state = { name: 'connecting' };
  #typingId = null;
  #maxBytes = null;
  #pinned = true; // the newest message is in sight, and is kept there
  #size = '';
  #inSight = false;

  /** `root` is the person's section; `other` is who they talk to. */
  constructor(root, { name, other }) {
    this.#name = name;
    this.#otherName = other.name;
    this.#otherId = other.id;
    this.#part = Object.fromEntries(
      Array.from(root.querySelectorAll('[data-role]'), (part) => [part.dataset.role, part]),
    );
    root.querySelector('[data-role=name]').textContent = name;
    root.querySelector('[data-role=avatar]').textContent = name[0];
    this.#listen(root);
    onLanguage(() => this.#translate());
  }

  on(handlers) {
    this.#handlers = handlers;
    this.#reportWatched();
  }

  #listen(root) {
    const { power, composer, input, earlier, log, list } = this.#part;
    power.addEventListener('change', () => this.#handlers.power(power.checked));
    composer.addEventListener('submit', (event) => {
      event.preventDefault();
      this.#submit();
    });
    input.addEventListener('keydown', (event) => {
      // While a Korean syllable is being composed, Enter belongs to the input method.
      const composing = event.isComposing || event.keyCode === 229;
      if (event.key === 'Enter' && !event.shiftKey && !composing) {
        event.preventDefault();
        this.#submit();
      }
    });
    input.addEventListener('input', () => {
      this.#showBytes();
      if (input.value !== '') this.#handlers.typing();
    });
    earlier.addEventListener('click', () => this.#handlers.earlier());
    log.addEventListener('click', (event) => {
      const button = event.target.closest('[data-role=resend]');
      if (!button) return;
      this.#handlers.resend(button.closest('[data-role=message]').dataset.clientMessageId);
      input.focus(); // the button is gone now
    });
    log.addEventListener('scroll', () => {
      const size = `${log.clientHeight} ${log.scrollHeight}`;
      // Only a reader's scrolling counts: the browser scrolls by itself when the size changes.
      if (size === this.#size) this.#pinned = log.scrollHeight - log.scrollTop - log.clientHeight < NEAR_BOTTOM_PX;
      else this.#stayDown();
    });
    const resized = new ResizeObserver(() => this.#stayDown());
    for (const part of [log, list]) resized.observe(part);

    new IntersectionObserver(
      ([entry]) => {
        this.#inSight = entry.isIntersecting;
        this.#reportWatched();
      },
      { threshold: 0.4 },
    ).observe(log);
    document.addEventListener('visibilitychange', () => this.#reportWatched());
    root.classList.add('ready');
  }

  #reportWatched() {
    this.#handlers.watched?.(this.#inSight && document.visibilityState === 'visible');
  }

  #submit() {
    const { input, hint } = this.#part;
    if (input.value.trim() === '') return;
    if (this.#handlers.send(input.value) === 'too_long') {
      this.#showBytes();
      input.focus();
      return;
    }
    input.value = '';
    hint.textContent = '';
    this.#showBytes();
    this.#pinned = true;
    this.#stayDown();
    input.focus();
  }

  // Connection

  connection(state) {
    this.#state = state;
    this.#showState();
  }

  #showState() {
    const { name, sessionId } = this.#state;
    const text = words()[name];
    this.#part.state.textContent = typeof text === 'function' ? text(sessionId.slice(-6)) : text;
    this.#part.state.title = name === 'connected' ? sessionId : '';
    this.#part.state.dataset.connection = name;
    this.#part.power.checked = name !== 'offline' && name !== 'replaced';
  }

  // Composer

  limit(maxBytes) {
    this.#maxBytes = maxBytes;
    this.#showBytes();
  }

  #showBytes() {
    const { input, hint } = this.#part;
    const used = contentBytes(input.value);
    const limit = this.#maxBytes;
    const over = limit !== null && used > limit;
    const shown = limit !== null && used >= limit * SHOWN_FROM;
    hint.textContent = over ? words().tooLong(used, limit) : shown ? words().bytes(used, limit) : '';
    hint.classList.toggle('over', over);
    input.setAttribute('aria-invalid', String(over));
  }

  typing(userId) {
    this.#typingId = userId;
    const name = userId === this.#otherId ? this.#otherName : userId;
    this.#part.typing.textContent = userId === null ? '' : words().typing(name);
  }

  // Messages

  earlierFailed() {
    this.#part.aloud.textContent = words().earlierFailed;
    this.#part.earlier.title = words().earlierFailed;
  }

  draw(view) {
    this.#view = view;
    const { log, list, earlier, empty } = this.#part;
    const before = { height: log.scrollHeight, top: log.scrollTop, first: list.firstElementChild };

    empty.hidden = view.items.length > 0;
    empty.textContent = view.opened ? words().noMessages(this.#otherName) : words().loading;
    earlier.hidden = !view.hasEarlier;
    earlier.disabled = !view.canLoadEarlier;

    let next = list.firstElementChild;
    const gone = new Set(this.#bubbles.keys());
    for (const item of view.items) {
      gone.delete(item.key);
      const bubble = this.#bubble(item);
      if (bubble === next) next = next.nextElementSibling;
      else list.insertBefore(bubble, next);
    }
    for (const key of gone) {
      this.#bubbles.get(key).element.remove();
      this.#bubbles.delete(key);
    }

    // What was being read stays where it is when earlier messages come in above it.
    const grewAbove = before.first && list.firstElementChild !== before.first;
    if (grewAbove && !this.#pinned) log.scrollTop = before.top + (log.scrollHeight - before.height);
    this.#stayDown();
  }

  #stayDown() {
    const { log } = this.#part;
    if (this.#pinned) log.scrollTop = log.scrollHeight;
    this.#size = `${log.clientHeight} ${log.scrollHeight}`;
  }

  #bubble(item) {
    const drawn = JSON.stringify(item);
    const known = this.#bubbles.get(item.key);
    if (known?.drawn === drawn) return known.element;

    const bubble = known?.element ?? element('li', 'message');
    this.#bubbles.set(item.key, { element: bubble, drawn });
    bubble.classList.toggle('mine', item.mine);
    Object.assign(bubble.dataset, { state: item.state, clientMessageId: item.clientMessageId ?? '' });
    this.#setData(bubble, 'id', item.id);
    this.#setData(bubble, 'seq', item.seq);
    this.#setData(bubble, 'mark', item.mark);
    this.#setData(bubble, 'reason', item.reason);
    this.#setData(bubble, 'code', item.code);
    this.#setData(bubble, 'fate', item.state === 'failed' ? this.#fate(item) : null);

    if (!known) {
      const who = element('span', null, 'unseen');
      who.textContent = item.mine ? words().you : words().from(item.senderName ?? item.senderId);
      const content = element('p', 'content');
      content.textContent = item.deletedAt ? words().deleted : item.content;
      bubble.append(who, content, element('p', 'meta'));
    }
    this.#meta(bubble.lastElementChild, item);
    return bubble;
  }

  #fate({ reason, fateUnknown }) {
    if (fateUnknown) return 'unknown';
    return reason === 'not_connected' ? 'not_sent' : 'refused';
  }

  #setData(bubble, name, value) {
    if (value === null || value === undefined) delete bubble.dataset[name];
    else bubble.dataset[name] = value;
  }

  #meta(meta, item) {
    const parts = [];
    const small = (role, text, title = '') => {
      const part = element('span', role);
      part.textContent = text;
      part.title = title;
      parts.push(part);
      return part;
    };

    if (item.mine) {
      const mark = small('mark', MARKS[item.state]);
      mark.setAttribute('role', 'img');
      mark.setAttribute('aria-label', words()[item.state]);
    }
    if (item.state === 'failed') {
      const why = failure(item);
      small('why', why, item.detail ?? '');
      const resend = element('button', 'resend');
      resend.type = 'button';
      resend.textContent = words().resend;
      parts.push(resend);
      this.#part.aloud.textContent = words().failedAloud(why);
    }
    if (item.state === 'sending') small('why', item.queued ? words().waiting : words().sending);
    if (item.seq !== undefined) {
      const saved = words().savedAs(item.id, item.seq);
      if (item.mine) parts[0].title = saved;
      const time = element('time', 'time');
      time.dateTime = item.timestamp;
      time.textContent = timeText(item.timestamp);
      parts.push(time);
      small('saved', `#${item.seq} …${String(item.id).slice(-6)}`, saved);
      if (item.mark) small(item.mark, words()[item.mark]);
    }
    meta.title = item.id ? words().savedAs(item.id, item.seq) : '';
    meta.replaceChildren(...parts);
  }

  // Language

  #translate() {
    const { power, powerName, log, list, input } = this.#part;
    power.setAttribute('aria-label', words().networkOf(this.#name));
    powerName.textContent = words().network;
    for (const part of [log, list]) part.setAttribute('aria-label', words().messagesOf(this.#name));
    this.#part.earlier.textContent = words().earlier;
    this.#part.send.textContent = words().send;
    input.setAttribute('aria-label', words().writeTo(this.#otherName));
    input.placeholder = words().writeTo(this.#otherName);
    this.#showState();
    this.#showBytes();
    this.typing(this.#typingId);
    list.replaceChildren();
    this.#bubbles.clear();
    this.draw(this.#view);
  }
}
