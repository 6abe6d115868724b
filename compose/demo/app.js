// Starts the page: two people who share one room, and a phone on the desk of each.

import { Phone } from './desk.js';
import { Person } from './person.js';
import { Screen } from './screen.js';
import { Token, openRoom } from './server.js';
import { currentLanguage, fill, onLanguage, toggleLanguage, words } from './words.js';

const PEOPLE = [
  { id: 'ada', name: 'Ada' },
  { id: 'ben', name: 'Ben' },
];
const ROOM_ID = 'ada_ben'; // a direct room's id: both user ids, sorted
const tokens = Object.fromEntries(PEOPLE.map(({ id }) => [id, new Token(id)]));

let room = null;

/** Makes the room once; both people wait for the same call, and a failed one is made again by the next who asks. */
function roomOpened() {
  room ??= openRoom(tokens.ada, ['ada', 'ben']).catch((error) => {
    room = null;
    throw error;
  });
  return room;
}

const main = document.querySelector('main');
const template = document.querySelector('#person');
const phones = {};

/** On a narrow screen one person is shown at a time. */
function show(id) {
  main.dataset.shown = id;
  for (const tab of document.querySelectorAll('[data-role=tab]')) {
    tab.setAttribute('aria-pressed', String(tab.dataset.show === id));
  }
  phones[id].looked();
}

function badge(id, count) {
  const shownAlone = main.dataset.shown === id;
  const spot = document.querySelector(`[data-role=tab][data-show=${id}] [data-role=badge]`);
  spot.textContent = count > 0 && !shownAlone ? String(count) : '';
  spot.hidden = spot.textContent === '';
  spot.setAttribute('aria-label', words().pushCount(count));
}

const started = PEOPLE.map(({ id, name }, index) => {
  const root = template.content.firstElementChild.cloneNode(true);
  root.dataset.person = id;
  root.setAttribute('aria-label', name);
  main.append(root);

  const screen = new Screen(root, { name, other: PEOPLE[1 - index] });
  phones[id] = new Phone(root.querySelector('[data-role=phone]'), {
    userId: id,
    token: tokens[id],
    name,
    onCount: (count) => badge(id, count),
  });
  return new Person({ id, roomId: ROOM_ID, token: tokens[id], openRoom: roomOpened, screen });
});

onLanguage(() => {
  document.documentElement.lang = currentLanguage();
  document.querySelector('[data-role=language]').lang = currentLanguage() === 'en' ? 'ko' : 'en';
  document.title = words().title;
  document.querySelector('[data-role=tabs]').setAttribute('aria-label', words().people);
  fill(document);
});
document.querySelector('[data-role=language]').addEventListener('click', toggleLanguage);
for (const tab of document.querySelectorAll('[data-role=tab]')) {
  tab.addEventListener('click', () => show(tab.dataset.show));
}
show('ada');
for (const person of started) person.start();
