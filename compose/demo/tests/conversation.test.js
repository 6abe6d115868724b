// The state machine behind the marks: node --test compose/demo/tests/*.test.js

import assert from 'node:assert/strict';
import { webcrypto } from 'node:crypto';
import { test } from 'node:test';

import { ANSWER_WITHIN_MS, Conversation, contentBytes, randomId } from '../conversation.js';

globalThis.crypto ??= webcrypto; // Node 18 has it here only

const ROOM = 'ada_ben';

function opened(messages = [], hasMore = false) {
  let made = 0;
  const conversation = new Conversation({ me: 'ada', roomId: ROOM, newId: () => `draft-${(made += 1)}` });
  conversation.history({ messages, hasMore });
  return conversation;
}

function saved(seq, { senderId = 'ben', content = `message ${seq}`, clientMessageId = `other-${seq}` } = {}) {
  const id = seq.toString(16).padStart(24, '0');
  const timestamp = '2025-01-01T00:00:00.000Z';
  return { type: 'CHAT', id, chatRoomId: ROOM, seq, senderId, senderName: senderId, content, timestamp, clientMessageId };
}

function ack(clientMessageId, seq) {
  const { id, timestamp } = saved(seq);
  return { type: 'ACK', clientMessageId, id, chatRoomId: ROOM, seq, timestamp };
}

const error = (clientMessageId, code) => ({ type: 'ERROR', code, message: 'a sentence', clientMessageId });
const read = (seq, userId = 'ben') => ({ type: 'READ', chatRoomId: ROOM, userId, seq });
const received = (seq, userId = 'ben') => ({ type: 'RECEIVED', chatRoomId: ROOM, userId, seq });
const states = (conversation) => conversation.items().map(({ state }) => state);
const contents = (conversation) => conversation.items().map(({ content }) => content);
const ids = (frames) => frames.map(({ clientMessageId }) => clientMessageId);

test('a message is drawn as sending at once, and sent with the ACK', () => {
  const conversation = opened();
  const frame = conversation.write('안녕하세요\n둘째 줄', 'up', 0);
  assert.deepEqual(frame, {
    type: 'CHAT', chatRoomId: ROOM, content: '안녕하세요\n둘째 줄', clientMessageId: 'draft-1',
  });
  assert.deepEqual(states(conversation), ['sending']);
  assert.equal(conversation.nextDeadline, ANSWER_WITHIN_MS);
  const { key } = conversation.items()[0];

  assert.equal(conversation.acknowledged(ack('draft-1', 1)), true);
  const [item] = conversation.items();
  assert.equal(item.state, 'sent');
  assert.equal(item.id, saved(1).id);
  assert.equal(item.seq, 1);
  assert.equal(item.content, '안녕하세요\n둘째 줄');
  assert.equal(item.key, key, 'the same bubble');
  assert.equal(conversation.nextDeadline, null);
});

test('an ERROR fails the message, and says whether it was refused or its fate is unknown', () => {
  const conversation = opened();
  conversation.write('one', 'up', 0);
  conversation.write('two', 'up', 0);
  conversation.refused(error('draft-1', 'RATE_LIMITED'));
  conversation.refused(error('draft-2', 'UNAVAILABLE'));
  const [one, two] = conversation.items();
  assert.deepEqual([one.state, one.reason, one.code, one.fateUnknown], ['failed', 'refused', 'RATE_LIMITED', false]);
  assert.deepEqual([two.state, two.reason, two.code, two.fateUnknown], ['failed', 'unavailable', 'UNAVAILABLE', true]);
  assert.equal(conversation.refused(error('somebody-else', 'RATE_LIMITED')), false);
});

test('what failed is dropped when its author writes on', () => {
  const conversation = opened();
  conversation.write('one', 'up', 0);
  assert.deepEqual(conversation.drops(), []);
  conversation.refused(error('draft-1', 'RATE_LIMITED'));
  const [drop] = conversation.drops();
  assert.deepEqual([drop.type, drop.chatRoomId, drop.clientMessageId], ['DROP', conversation.roomId, 'draft-1']);
  conversation.resend('draft-1', 'up', 1);
  assert.deepEqual(conversation.drops(), []);
});

test('a refused resend leaves an unanswered first try unknown', () => {
  const conversation = opened();
  conversation.write('one', 'up', 0);
  conversation.expire(ANSWER_WITHIN_MS);
  conversation.resend('draft-1', 'up', 20_000);
  conversation.refused(error('draft-1', 'RATE_LIMITED'));
  assert.equal(conversation.items()[0].reason, 'refused');
  assert.equal(conversation.items()[0].fateUnknown, true);
  conversation.refused(error('draft-1', 'RATE_LIMITED'));
  assert.equal(conversation.items()[0].fateUnknown, false, 'the first try was answered too');
});

test('no answer in time fails the message, and a late ACK settles it', () => {
  const conversation = opened();
  conversation.write('one', 'up', 5);
  assert.deepEqual(conversation.expire(ANSWER_WITHIN_MS + 4), []);
  assert.deepEqual(conversation.expire(ANSWER_WITHIN_MS + 5), ['draft-1']);
  const [item] = conversation.items();
  assert.deepEqual([item.state, item.reason, item.fateUnknown], ['failed', 'no_answer', true]);
  assert.deepEqual(conversation.expire(ANSWER_WITHIN_MS * 9), []);

  conversation.acknowledged(ack('draft-1', 1));
  assert.deepEqual(states(conversation), ['sent']);
});

test('a resend keeps the id, and only a failed message is resent', () => {
  const conversation = opened();
  const first = conversation.write('one', 'up', 0);
  assert.equal(conversation.resend('draft-1', 'up', 1), null, 'still sending');
  conversation.expire(ANSWER_WITHIN_MS);
  assert.deepEqual(conversation.resend('draft-1', 'up', 20_000), first);
  assert.deepEqual(states(conversation), ['sending']);
  assert.equal(conversation.nextDeadline, 20_000 + ANSWER_WITHIN_MS);

  conversation.acknowledged(ack('draft-1', 1));
  conversation.acknowledged(ack('draft-1', 1));
  assert.equal(conversation.resend('draft-1', 'up', 20_001), null, 'sent');
  assert.equal(conversation.items().length, 1);
});

test('written while switched off: failed as not sent, and not sent by a reconnect', () => {
  const conversation = opened();
  assert.equal(conversation.write('one', 'down', 0), null);
  const [item] = conversation.items();
  assert.deepEqual([item.state, item.reason, item.fateUnknown], ['failed', 'not_connected', false]);
  assert.deepEqual(conversation.connected(1), { again: [], waiting: [] });
  assert.equal(conversation.resend('draft-1', 'up', 2).clientMessageId, 'draft-1');
});

test('written while connecting: goes out once connected, fails when that takes too long or is switched off', () => {
  const conversation = opened();
  assert.equal(conversation.write('one', 'coming', 0), null);
  assert.deepEqual(conversation.items().map(({ state, queued }) => [state, queued]), [['sending', true]]);
  assert.deepEqual(ids(conversation.connected(1).waiting), ['draft-1']);
  assert.deepEqual(conversation.items().map(({ state, queued }) => [state, queued]), [['sending', false]]);

  const slow = opened();
  slow.write('one', 'coming', 0);
  slow.expire(ANSWER_WITHIN_MS);
  assert.equal(slow.items()[0].reason, 'not_connected');
  assert.equal(slow.items()[0].fateUnknown, false);
  assert.deepEqual(slow.connected(20_000), { again: [], waiting: [] });

  const off = opened();
  off.write('one', 'coming', 0);
  off.disconnected();
  assert.equal(off.items()[0].reason, 'not_connected');
});

test('after a reconnect what was never acknowledged is resent, in the order it was first sent', () => {
  const conversation = opened();
  conversation.write('acknowledged', 'up', 0);
  conversation.write('never sent', 'down', 0);
  conversation.write('no answer', 'up', 0);
  conversation.write('refused', 'up', 0);
  conversation.write('unavailable', 'up', 0);
  conversation.write('just sent', 'up', 9_000);
  conversation.acknowledged(ack('draft-1', 1));
  conversation.refused(error('draft-4', 'FORBIDDEN'));
  conversation.refused(error('draft-5', 'UNAVAILABLE'));
  conversation.expire(ANSWER_WITHIN_MS);
  conversation.write('waiting', 'coming', 10_500);
  conversation.resend('draft-2', 'up', 10_600); // first sent last

  const { again, waiting } = conversation.connected(11_000);
  assert.deepEqual(ids(again), ['draft-3', 'draft-5', 'draft-6', 'draft-2']);
  assert.deepEqual(ids(waiting), ['draft-7']);
  assert.deepEqual(states(conversation), ['sent', 'sending', 'sending', 'failed', 'sending', 'sending', 'sending']);
  assert.equal(conversation.nextDeadline, 11_000 + ANSWER_WITHIN_MS);
});

test('a switched-off network leaves what was sent on its way until the time is up', () => {
  const conversation = opened();
  conversation.write('one', 'up', 0);
  conversation.disconnected();
  assert.deepEqual(states(conversation), ['sending']);
  conversation.expire(ANSWER_WITHIN_MS);
  conversation.resend('draft-1', 'down', 11_000);
  const [item] = conversation.items();
  assert.deepEqual([item.reason, item.fateUnknown], ['not_connected', true]);
  assert.deepEqual(ids(conversation.connected(12_000).again), ['draft-1']);
});

test('a CHAT that is here already is dropped, by seq and by id', () => {
  const conversation = opened([saved(1)]);
  assert.equal(conversation.chat(saved(2)), 'added');
  assert.equal(conversation.chat(saved(2)), 'dropped');
  assert.equal(conversation.chat(saved(1)), 'dropped');
  assert.equal(conversation.chat({ ...saved(3), id: saved(2).id }), 'dropped');
  assert.equal(conversation.chat({ ...saved(3), chatRoomId: 'other' }), 'dropped');
  assert.equal(conversation.items().length, 2);
});

test('messages stand in the order of seq, however they come, and a gap is known', () => {
  const conversation = opened([saved(2), saved(1)]);
  conversation.write('unsettled', 'up', 0);
  conversation.chat(saved(5));
  assert.equal(conversation.upTo, 2);
  assert.equal(conversation.hasGap, true);
  assert.equal(conversation.lastFromOthers, 2, 'nothing beyond the gap is claimed as received');
  conversation.chat(saved(4));
  conversation.chat(saved(3));
  assert.equal(conversation.upTo, 5);
  assert.equal(conversation.hasGap, false);
  assert.equal(conversation.lastFromOthers, 5);
  assert.deepEqual(contents(conversation), [
    'message 1', 'message 2', 'message 3', 'message 4', 'message 5', 'unsettled',
  ]);
});

test('one’s own message by SYNC or CHAT settles the bubble instead of doubling it', () => {
  const conversation = opened();
  conversation.write('one', 'up', 0);
  conversation.expire(ANSWER_WITHIN_MS);
  const { key } = conversation.items()[0];
  const mine = saved(1, { senderId: 'ada', content: 'one', clientMessageId: 'draft-1' });
  assert.equal(conversation.chat(mine), 'settled');
  assert.deepEqual(conversation.items().map((item) => [item.key, item.state, item.seq]), [[key, 'sent', 1]]);
  conversation.acknowledged(ack('draft-1', 1));
  assert.equal(conversation.items().length, 1);
  assert.deepEqual(conversation.connected(20_000), { again: [], waiting: [] });
});

test('another’s message with the same clientMessageId settles nothing', () => {
  const conversation = opened();
  conversation.write('one', 'up', 0);
  assert.equal(conversation.chat(saved(1, { clientMessageId: 'draft-1' })), 'added');
  assert.deepEqual(states(conversation), ['received', 'sending']);
});

test('read and received come from the other’s frames and only go forward', () => {
  const conversation = opened();
  for (const seq of [1, 2, 3]) {
    conversation.write(`own ${seq}`, 'up', 0);
    conversation.acknowledged(ack(`draft-${seq}`, seq));
  }
  const marks = () => conversation.items().map(({ mark }) => mark);
  assert.deepEqual(marks(), [null, null, null]);
  conversation.marked(read(3, 'ada'));
  assert.deepEqual(marks(), [null, null, null], 'one’s own reading is no mark');
  conversation.marked(received(2));
  assert.deepEqual(marks(), ['received', 'received', null]);
  conversation.marked(read(1));
  assert.deepEqual(marks(), ['read', 'received', null]);
  conversation.marked(read(3));
  conversation.marked(read(2));
  assert.deepEqual(marks(), ['read', 'read', 'read'], 'read implies received, and an older one changes nothing');
  conversation.chat(saved(4));
  conversation.marked(read(4));
  assert.equal(conversation.items()[3].mark, null, 'no mark on the other’s messages');
});

test('history pages join, and the SYNC asks for what comes after', () => {
  const conversation = opened([saved(6), saved(5), saved(4)], true);
  assert.equal(conversation.upTo, 6);
  assert.equal(conversation.hasEarlier, true);
  assert.equal(conversation.firstSeq, 4);
  conversation.history({ messages: [saved(3), saved(2), saved(1)], hasMore: false });
  assert.equal(conversation.hasEarlier, false);
  assert.equal(conversation.upTo, 6);
  assert.equal(conversation.items().length, 6);
  assert.equal(opened().upTo, 0);
});

test('SYNCED tells whether to ask again', () => {
  const conversation = opened([saved(1)]);
  conversation.chat(saved(2));
  const synced = (seq, complete) => conversation.synced({ rooms: [{ chatRoomId: ROOM, seq, complete }] });
  assert.equal(synced(2, false), true);
  assert.equal(conversation.upTo, 2);
  assert.equal(synced(2, true), false);
  assert.equal(conversation.synced({ rooms: [] }), false);
});

test('lengths are UTF-8 bytes, ids fit the protocol', () => {
  assert.equal(contentBytes('a나⏳'), 7);
  assert.match(randomId(), /^[0-9a-f]{32}$/);
  assert.notEqual(randomId(), randomId());
});

test('another epoch: what was held is forgotten, what waits is kept, and the room is loaded again', () => {
  const conversation = new Conversation({ me: 'ada', roomId: ROOM, newId: () => 'draft-1' });
  conversation.history({ messages: [saved(1), saved(2), saved(3)], hasMore: true, epoch: 1 });
  conversation.marked(read(3));
  conversation.write('on its way', 'up', 0);
  assert.equal(conversation.inEpoch(1), true);
  assert.equal(conversation.upTo, 3);

  assert.equal(conversation.inEpoch(1_795_339_800_042), false);
  assert.deepEqual(contents(conversation), ['on its way']);
  assert.equal(conversation.opened, false);
  assert.equal(conversation.upTo, 0);
  assert.equal(conversation.hasEarlier, false);
  assert.equal(conversation.connected(1).again.length, 1, 'its fate is unknown');

  // The same places, other messages; nothing of them counts as known.
  conversation.chat(saved(3, { content: 'new three' }));
  const page = [saved(1), saved(2, { content: 'new two' })];
  conversation.history({ messages: page, hasMore: false, epoch: 1_795_339_800_042 });
  assert.deepEqual(contents(conversation), ['message 1', 'new two', 'new three', 'on its way']);
  assert.equal(conversation.upTo, 3);
  assert.equal(conversation.acknowledged(ack('draft-1', 4)), true);
  assert.equal(conversation.items()[3].mark, null, 'the marks were of the other epoch');
});

test('a page or a SYNCED of another epoch than what is held forgets that first', () => {
  const conversation = opened([saved(1), saved(2)]);
  conversation.history({ messages: [saved(1, { content: 'new one' })], hasMore: false, epoch: 2 });
  assert.deepEqual(contents(conversation), ['new one']);
  const synced = { type: 'SYNCED', rooms: [{ chatRoomId: ROOM, seq: 1, complete: true, epoch: 3 }] };
  assert.equal(conversation.synced(synced), true, 'there is more to ask for: all of it');
  assert.equal(conversation.upTo, 0);
});
