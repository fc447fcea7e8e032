// Asks, and shows the answer as it streams. Without this script the same form posts and the page comes back.

import { short, showBudget, showHeld, takeBudget } from "./budget.js";
import { forgetDraft, keepDraft, takeDraft } from "./draft.js";
import { events } from "./events.js";
import { addConversation, addTurn, announce, append, ending, markWordless, say, sentence, words } from "./turns.js";

const part = (name) => document.querySelector(`[data-chat="${name}"]`);
const form = part("form");
const { prompt, conversation_id: conversation, max_tokens: cap, csrfmiddlewaretoken: csrf } = form.elements;
const BUSY_TRIES = 10; // before it says busy, the server waits by itself
const SETTLED_TRIES = 12;
let signedOut = false;
let running = null; // the AbortController of the answer under way
let known = part("turns").querySelectorAll(".turn").length; // as many turns the server has shown

form.addEventListener("submit", (event) => {
  event.preventDefault();
  if (!running && prompt.value.trim()) ask(prompt.value);
});
prompt.addEventListener("keydown", (event) => {
  const composing = event.isComposing || event.keyCode === 229; // an input method's Enter picks a word
  if (event.key !== "Enter" || event.shiftKey || composing) return;
  event.preventDefault();
  form.requestSubmit();
});
part("stop").addEventListener("click", () => running?.abort());
addEventListener("pagehide", () => signedOut && keepDraft(form)); // what was typed since, too
if (known) scrollTo(0, document.body.scrollHeight);
if (takeDraft(form)) announce(sentence("kept"));
resume();

async function ask(question) {
  const turns = begin(question);
  refuse(null);
  forgetDraft();
  prompt.value = "";
  remember({ question, known, id: null });
  const got = { id: null, facts: null, waited: false };
  let failure = null;
  try {
    await read(await post(question, turns[1], got), question, turns[1], got);
  } catch (reason) {
    failure = reason;
    if (reason instanceof TypeError) await pause(500); // a page that is being left fails too: its script ends here
  }
  if (got.facts) settle(turns[1], got.facts);
  else breakOff(turns, question, failure, got.id);
  // The error of a stream comes after its settlement, if there is one.
  const tries = got.id && !failure?.error ? SETTLED_TRIES : 2;
  if (!signedOut && (got.waited || !got.facts?.budget)) await refresh(got.id, question, tries);
  end(turns[1]);
}

// Events: held, token…, then done or error. The header names the conversation to a reader who stops before `done`.
async function read(response, question, answer, got) {
  got.id = response.headers.get("X-Conversation-ID");
  remember({ question, known, id: got.id });
  for await (const { name, data } of events(response.body)) {
    if (name === "held") hold(answer, data);
    if (name === "token") append(answer, data.text);
    if (name === "done") got.facts = data;
    if (name === "error") throw data;
  }
  if (!got.facts) throw { message: sentence("broken") };
  keepPlace(got.id, question);
  if (got.facts.budget) known += 2; // without it, its turns may not be written yet
}

async function post(question, answer, got) {
  const body = { prompt: question, stream: true, max_tokens: Number(cap?.value) || undefined };
  if (conversation.value) body.conversation_id = Number(conversation.value);
  const headers = { "Content-Type": "application/json", "X-CSRFToken": csrf.value };
  const { signal } = running;
  for (let tries = BUSY_TRIES; ; tries -= 1) {
    const response = await fetch("/api/chat/", { method: "POST", headers, body: JSON.stringify(body), signal });
    if (response.ok) return response;
    const message = `The server answered ${response.status}. Try again.`;
    const failure = { message, ...(await response.json().catch(() => null)), status: response.status };
    if (failure.error !== "conversation_busy" || !tries) throw failure;
    got.waited = true;
    say(answer, sentence("busy"), "");
    announce(sentence("busy"));
    await pause(failure.retry_after_ms);
    signal.throwIfAborted();
  }
}

// --- one answer, from its beginning to its end ---

function begin(question) {
  running = new AbortController();
  form.toggleAttribute("data-running", true); // shows Stop in the place of Send
  const turns = [addTurn("user", question), addTurn("assistant", "")];
  turns[1].setAttribute("aria-busy", "true");
  return turns;
}

function hold(answer, held) {
  const note = held.fitted ? sentence("fitted", held.max_tokens) : "";
  say(answer, note, `${short(held.reserved)} ${sentence("held", held.max_tokens)}`);
  if (note) announce(note);
  showHeld(held);
}

function settle(answer, { cost, usage, outcome, finish_reason: reason, fitted, budget }) {
  const how = outcome === "exact" ? "" : ` · ${sentence(`outcome.${outcome}`)}`;
  const left = ` · ${budget ? short(budget.remaining) : "—"} left`;
  const note = sentence(`end.${reason}`) || (fitted ? ending(answer) : "");
  say(answer, note, `$${cost.usd} · ${usage.input_tokens} in / ${usage.output_tokens} out${how}${left}`);
  markWordless(answer);
  showBudget(budget);
}

// What came stays. Where nothing came, the message goes back into the box, before what was typed meanwhile.
function breakOff([asked, answer], question, failure, id) {
  const stopped = running.signal.aborted;
  if (!stopped) refuse(failure);
  if (words(answer).textContent || (stopped && id)) {
    say(answer, sentence(stopped ? "end.cancelled" : "end.error"), sentence("settling"));
  } else {
    takeBack([asked, answer], question);
  }
}

function takeBack(turns, question) {
  for (const turn of turns) turn.remove();
  sessionStorage.removeItem("asked");
  prompt.value = [question, prompt.value].filter(Boolean).join("\n");
}

function end(answer) {
  running = null;
  form.toggleAttribute("data-running", false);
  answer.removeAttribute("aria-busy");
  if (answer.isConnected) announce(answer.querySelector(".turn__body").textContent);
  prompt.focus();
}

// The conversation and the budget as the server has them, once it has this answer: it alone knows what was charged.
async function refresh(id, question, tries) {
  for (; tries; tries -= 1) {
    await pause(500);
    const response = await fetch(id ? `/c/${id}/` : location.pathname).catch(() => null);
    if (!response?.ok) continue;
    const page = new DOMParser().parseFromString(await response.text(), "text/html");
    takeBudget(page.querySelector('[data-chat="budget"]'));
    if (!id) return false;
    const turns = [...page.querySelectorAll('[data-chat="turns"] .turn')];
    if (turns.length <= known || words(turns.at(-2)).textContent.trim() !== question.trim()) continue;
    part("turns").replaceChildren(part("turns").firstElementChild, ...turns);
    known = turns.length;
    keepPlace(id, question);
    announce(turns.at(-1).querySelector(".turn__body").textContent);
    return true;
  }
  const last = part("turns").querySelector(".turn[aria-busy]");
  if (last) say(last, ending(last), sentence("unsettled"));
  return false;
}

// --- a page that was reloaded before its answer had come, or before its address was the conversation's ---

function remember(asked) {
  sessionStorage.setItem("asked", JSON.stringify(asked));
}

async function resume() {
  const asked = JSON.parse(sessionStorage.getItem("asked") ?? "null");
  sessionStorage.removeItem("asked");
  const isReload = performance.getEntriesByType("navigation")[0]?.type === "reload";
  if (!asked || !isReload || known > asked.known) return; // by now the page has it
  const turns = begin(asked.question);
  const found = asked.id && (await refresh(asked.id, asked.question, SETTLED_TRIES));
  if (!found) {
    takeBack(turns, asked.question);
    announce(sentence("left"));
  }
  end(turns[1]);
}

// --- the page ---

function keepPlace(id, question) {
  if (!conversation.value) addConversation(id, question);
  conversation.value = id;
  history.replaceState(null, "", `/c/${id}/`);
}

function refuse(failure) {
  const { status, error, reason, budget, confirm_email: waits, retry_after_ms: later } = failure ?? {};
  // A token that is not taken is of before a log-out or a log-in in another tab.
  signedOut = status === 401 || error === "csrf_failed";
  const ours = signedOut ? sentence("signed_out") : failure instanceof Error ? sentence("lost") : null;
  const message = ours ?? failure?.message;
  const fits = budget?.affordable_max_tokens > 0 && sentence("affordable", budget.affordable_max_tokens);
  part("refusal-words").textContent = [message, fits].filter(Boolean).join(" ");
  const renewal = part("refusal-renews"); // as the page was written, maybe a period ago
  const lapses = !budget?.scope?.includes("/workflow:"); // a conversation's budget is for its whole life
  const renews = reason === "exhausted" && !waits && lapses && renewal?.dataset.at * 1000 > Date.now();
  renewal?.toggleAttribute("hidden", !renews);
  part("log-in").href = `/login/?next=${encodeURIComponent(location.pathname)}`;
  part("log-in").hidden = !signedOut;
  part("refusal-link").hidden = status !== 402 && error !== "account_on_hold";
  part("again").hidden = !later;
  part("refusal").hidden = !failure;
  if (budget?.remaining != null && !budget.scope.includes("/")) showBudget(budget); // a seat's figures are not for all
}

function pause(milliseconds) {
  return new Promise((done) => setTimeout(done, milliseconds));
}
