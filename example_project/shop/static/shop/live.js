"use strict";

// Shows the queues anew every second. What the server sends is escaped there.
const live = document.getElementById("live");
const unreachable = document.getElementById("unreachable");
const EVERY = 1000; // ms
const PATIENCE = 10000; // ms

function isBeingRead() {
  return document.hidden || !document.getSelection().isCollapsed;
}

function show(html) {
  if (html === live.innerHTML) return;
  const focused = live.contains(document.activeElement) && document.activeElement.id;
  live.innerHTML = html;
  if (focused) document.getElementById(focused)?.focus({ preventScroll: true });
}

async function renew() {
  try {
    if (!isBeingRead()) {
      const answer = await fetch(live.dataset.url, { signal: AbortSignal.timeout(PATIENCE) });
      if (!answer.ok) throw new Error(`status ${answer.status}`);
      const html = await answer.text();
      if (!isBeingRead()) show(html);
    }
    unreachable.hidden = true;
  } catch {
    unreachable.hidden = false;
  }
  setTimeout(renew, EVERY);
}

setTimeout(renew, EVERY);
