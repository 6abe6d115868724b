// Every sentence on the page, in English and Korean.

const WORDS = {
  en: {
    title: 'Naru: two people, one conversation',
    tagline: 'a landing for messages',
    lead:
      'Ada and Ben each hold a live connection; their phones lie on the desk and show the pushes that reach them. ' +
      '⏳\u00a0is on its way, ✓✓\u00a0is saved, ⚠️\u00a0is not confirmed. ' +
      'Turn off Ben’s network, write to him as Ada, and watch his phone; turn it on again, and the message is there.',
    language: '한국어',
    people: 'Who to show',
    network: 'Network',
    networkOf: (name) => `${name}’s network`,
    metrics: 'Metrics',
    ready: 'Readiness',

    connecting: 'connecting…',
    connected: (session) => `connected · session\u00a0${session}`,
    reconnecting: 'reconnecting…',
    offline: 'offline · switched off',
    replaced: 'connected elsewhere · switch on to return',

    messagesOf: (name) => `Messages on ${name}’s screen`,
    earlier: 'Earlier messages',
    earlierFailed: 'The earlier messages could not be loaded.',
    loading: 'Opening the conversation…',
    noMessages: (other) => `No messages yet. Say hello to ${other}.`,
    from: (name) => `${name}: `,
    you: 'You: ',
    deleted: 'This message was deleted.',
    typing: (name) => `${name} is typing…`,
    writeTo: (name) => `Message to ${name}`,
    send: 'Send',
    resend: 'Resend',
    sending: 'sending',
    waiting: 'waiting for the connection',
    sent: 'sent',
    failed: 'failed',
    failedAloud: (why) => `Message failed: ${why}`,
    read: 'read',
    received: 'on the device',
    savedAs: (id, seq) => `saved as ${id} · seq ${seq}`,
    bytes: (used, limit) => `${used} of ${limit} bytes`,
    tooLong: (used, limit) => `Too long: ${used} of ${limit} bytes`,

    notSent: 'not sent: not connected',
    notConnectedNow: 'not connected; an earlier try may still be saved',
    noAnswer: 'no answer: it may still be saved',
    unavailable: 'UNAVAILABLE: it may still be saved',
    refused: (code) => `refused: ${code}`,
    refusedAgain: (code) => `refused: ${code}; an earlier try may still be saved`,

    phoneOf: (name) => `${name}’s phone, on the desk`,
    phoneWaiting: 'Looking for the phone…',
    phoneEmpty: (name) => `No notifications. A push comes when ${name} can’t be reached.`,
    pushCount: (count) => `${count} new on the phone`,
  },
  ko: {
    title: '나루: 두 사람의 대화',
    tagline: '메시지가 건너는 나루터',
    lead:
      'Ada와 Ben은 저마다 실시간으로 연결되어 있고, 책상 위 휴대폰에는 도착한 푸시 알림이 보입니다. ' +
      '⏳\u00a0보내는\u00a0중, ✓✓\u00a0저장됨, ⚠️\u00a0확인되지\u00a0않음. ' +
      'Ben의 네트워크를 끄고 Ada로 메시지를 보내 Ben의 휴대폰을 지켜보세요. 다시 켜면 메시지가 와\u00a0있습니다.',
    language: 'English',
    people: '볼 사람',
    network: '네트워크',
    networkOf: (name) => `${name}의 네트워크`,
    metrics: '지표',
    ready: '준비 상태',

    connecting: '연결하는 중…',
    connected: (session) => `연결됨 · 세션\u00a0${session}`,
    reconnecting: '다시 연결하는 중…',
    offline: '오프라인 · 꺼 놓음',
    replaced: '다른 곳에서 연결됨 · 다시 켜면 돌아옵니다',

    messagesOf: (name) => `${name}의 화면에 보이는 메시지`,
    earlier: '이전 메시지',
    earlierFailed: '이전 메시지를 불러오지 못했습니다.',
    loading: '대화를 여는 중…',
    noMessages: (other) => `아직 메시지가 없습니다. ${other}에게 인사해 보세요.`,
    from: (name) => `${name}: `,
    you: '나: ',
    deleted: '삭제된 메시지입니다.',
    typing: (name) => `${name} 님이 입력하고 있습니다…`,
    writeTo: (name) => `${name}에게 보낼 메시지`,
    send: '보내기',
    resend: '다시 보내기',
    sending: '보내는 중',
    waiting: '연결을 기다리는 중',
    sent: '보냄',
    failed: '실패',
    failedAloud: (why) => `메시지 전송 실패: ${why}`,
    read: '읽음',
    received: '기기에 도착',
    savedAs: (id, seq) => `저장된 id ${id} · seq ${seq}`,
    bytes: (used, limit) => `${used} / ${limit}바이트`,
    tooLong: (used, limit) => `너무 깁니다: ${used} / ${limit}바이트`,

    notSent: '보내지 않음: 연결되어 있지 않습니다',
    notConnectedNow: '연결되어 있지 않습니다. 앞서 보낸 것은 저장되었을 수 있습니다',
    noAnswer: '응답 없음: 저장되었을 수도 있습니다',
    unavailable: 'UNAVAILABLE: 저장되었을 수도 있습니다',
    refused: (code) => `거절됨: ${code}`,
    refusedAgain: (code) => `거절됨: ${code}. 앞서 보낸 것은 저장되었을 수 있습니다`,

    phoneOf: (name) => `책상 위, ${name}의 휴대폰`,
    phoneWaiting: '휴대폰을 찾는 중…',
    phoneEmpty: (name) => `알림이 없습니다. ${name} 님과 연결되지 않을 때 푸시가 옵니다.`,
    pushCount: (count) => `휴대폰에 새 알림 ${count}개`,
  },
};

const KEPT_AS = 'naru-demo-language';

function firstLanguage() {
  try {
    const kept = localStorage.getItem(KEPT_AS);
    if (kept in WORDS) return kept;
  } catch {
    // Storage may be forbidden; the choice then lasts as long as the page.
  }
  return navigator.language?.toLowerCase().startsWith('ko') ? 'ko' : 'en';
}

let language = firstLanguage();
const listeners = new Set();

/** The sentences in the language chosen. */
export function words() {
  return WORDS[language];
}

/** Calls `listener` now and after each change of language. */
export function onLanguage(listener) {
  listeners.add(listener);
  listener();
}

export function toggleLanguage() {
  language = language === 'en' ? 'ko' : 'en';
  try {
    localStorage.setItem(KEPT_AS, language);
  } catch {
    // As above.
  }
  for (const listener of listeners) listener();
}

/** Puts the sentences into the elements under `root` which name one with `data-words`. */
export function fill(root) {
  for (const element of root.querySelectorAll('[data-words]')) element.textContent = words()[element.dataset.words];
}

export function currentLanguage() {
  return language;
}

/** The time of day; with the date when that isn't today. */
export function timeText(timestamp) {
  const at = new Date(timestamp);
  if (Number.isNaN(at.getTime())) return '';
  const today = at.toDateString() === new Date().toDateString();
  const form = { hour: '2-digit', minute: '2-digit', hourCycle: 'h23', ...(!today && { month: 'short', day: 'numeric' }) };
  return new Intl.DateTimeFormat(language, form).format(at);
}
