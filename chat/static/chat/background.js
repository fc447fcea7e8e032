// An answer by its call's number: followed from its first word on by whoever comes back to it, and stopped.

import { events } from "./events.js";
import { ANSWER, within } from "./patience.js";

const AGAIN = 2000;
const TRIES = 30;

// Its events, as they are when it is asked for. "lost" says that the connection is, and "anew" that all begins again from
// the first word; but not for a title, which may follow its end.
export async function* follow(call, signal) {
  let isOver = false;
  for (let tries = TRIES; ; tries -= 1) {
    try {
      const headers = { Accept: "text/event-stream" };
      const response = await within(ANSWER, fetch(`/api/chat/calls/${call}/?rendered=true`, { headers, signal }));
      if (!response.ok) throw { ...(await response.json().catch(() => null)), status: response.status };
      yield { name: "anew" };
      for await (const event of events(response.body)) {
        isOver ||= event.name === "done" || event.name === "error";
        yield event;
      }
      if (isOver) return;
    } catch (reason) {
      if (isOver) return;
      const isLost = reason instanceof TypeError && !signal.aborted;
      if (!isLost || !tries) throw reason;
      yield { name: "lost" };
    }
    await new Promise((done) => setTimeout(done, AGAIN));
  }
}

// Asked again until the answer has ended: a process that has just begun may not hear the first time. False where the
// server cannot be asked.
export async function stop(call, csrf, isOver) {
  while (!isOver()) {
    const request = { method: "POST", headers: { "X-CSRFToken": csrf } };
    const response = await within(ANSWER, fetch(`/api/chat/calls/${call}/stop/`, request)).catch(() => null);
    if (response?.status !== 202) return Boolean(response?.ok);
    await new Promise((done) => setTimeout(done, AGAIN));
  }
  return true;
}
