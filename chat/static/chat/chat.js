// Asks, and shows the answer as it streams. Without this script the same form posts and the page comes back.

import { listen, number } from "./acts.js";
import { follow, stop } from "./background.js";
import { showBlock, showWhole, spoken } from "./blocks.js";
import { about, short, showBudget, showHeld, takeBudget } from "./budget.js";
import { showConversation, showTitle } from "./conversations.js";
import "./copy.js";
import { chosenModel } from "./options.js";
import { forgetDraft, keep, keepDraft, takeDraft } from "./draft.js";
import { events } from "./events.js";
import { filesField, giveFiles, isAdding, showFiles, takeFilesBack } from "./files.js";
import { goingOnAt, stayingIn } from "./focus.js";
import { showLeftOut } from "./left_out.js";
import { excess, keepOut } from "./length.js";
import { ANSWER, within } from "./patience.js";
import { forget, watch as watchPrice } from "./price.js";
import { forgetWhatCame, showRefusal } from "./refusal.js";
import { answering, settled, titled, watch } from "./tabs.js";
import { addTurn, announce, append, ending, markWordless, say, sentence, words } from "./turns.js";

const part = (name) => document.querySelector(`[data-chat="${name}"]`);
const form = part("form");
const { prompt, conversation_id: conversation, parent_id: parent, max_tokens: cap } = form.elements;
const { csrfmiddlewaretoken: csrf } = form.elements;
const BUSY_TRIES = 10; // before it says busy, the server waits by itself
const SETTLED_TRIES = 12;
let signedOut = false;
let refused = null; // what a button under a message asked for, where that was refused: it is in no box
let unanswered = null; // what was sent last, as text, and its name, for as long as nothing was heard of it
let running = null; // the AbortController of the answer under way, with its call's number, and whether it was stopped

form.addEventListener("submit", (event) => {
  event.preventDefault();
  const { name, value } = event.submitter ?? {};
  const fits = name === "fits" ? Number(value) : 0;
  const isOnceMore = refused && (fits || event.submitter === part("again"));
  if (running || (!isOnceMore && (!prompt.value.trim() || isAdding()))) return;
  if (!isOnceMore) refused = null;
  if (!isOnceMore && excess(prompt)) return refuse({ message: sentence("too_long", excess(prompt)) });
  // Also where the browser takes itself for offline: a workspace on the same machine is there.
  if (isOnceMore) askOf(...refused, fits);
  else askAnew(prompt.value, fits);
});
listen(part("turns"), (kind, message) => {
  if (!running) askOf(kind, message, 0);
});
prompt.addEventListener("keydown", (event) => {
  const composing = event.isComposing || event.keyCode === 229; // an input method's Enter picks a word
  if (event.key !== "Enter" || event.shiftKey || composing) return;
  event.preventDefault();
  form.requestSubmit();
});
keepOut(prompt, (length) => refuse({ message: sentence("kept_out", length) }));
part("stop").addEventListener("click", halt);
// Send and Stop stand in one place, so that the second click of a double click finds the other one there: it would stop
// what was just sent, or send what is still being written.
part("stop").parentElement.addEventListener("click", (event) => event.detail > 1 && ignore(event), { capture: true });
addEventListener("online", () => part("refusal").hidden || !part("refusal").hasAttribute("data-lost") || backOnline());
addEventListener("pagehide", () => signedOut && keepDraft(form)); // what was typed since, too
if (takeDraft(form)) announce(sentence("kept"));
watchPrice(form, () => {
  const parent_id = parent.value ? Number(parent.value) : undefined;
  const files = filesField();
  if (excess(prompt)) return null;
  return prompt.value.trim() || files.files ? { ...common(), ...files, parent_id, prompt: prompt.value } : null;
});
watch((call) => running || parent.value || refresh({ id: conversation.value, call }, SETTLED_TRIES, null));
resume();

// `fits`: the longest answer that a refusal offered, or 0.
function askAnew(question, fits) {
  const body = { prompt: question };
  if (fits) body.max_tokens = fits;
  if (parent.value) body.parent_id = Number(parent.value);
  parent.value = "";
  forget();
  part("edited")?.toggleAttribute("hidden", true);
  prompt.value = "";
  const turns = [addTurn("user", question), addTurn("assistant", "")];
  return ask({ path: "/api/chat/", body: { ...body, ...giveFiles(turns[0]) }, question, turns });
}

// Another answer to a question stands in the place of the first; what followed that belongs to another branch.
async function askOf(kind, message, fits) {
  const turns = [addTurn("assistant", "")];
  const gone = [];
  let turn = document.getElementById(`m${message}`);
  const clear = () => {
    for (let after = turn; after && after !== turns[0]; after = turn) {
      turn = after.nextElementSibling;
      after.remove();
      gone.push(after);
    }
  };
  if (kind === "again") goingOnAt(prompt, clear);
  const body = { message_id: message, ...(fits && { max_tokens: fits }) };
  if (await ask({ path: `/api/chat/${kind}/`, body, turns, gone })) refused = [kind, message];
}

// `question` and its turn are there for a new question alone. What refused it, or null.
async function ask(asked) {
  const answer = asked.turns.at(-1);
  begin(answer);
  refuse(null);
  forgetWhatCame(prompt);
  refused = null;
  forgetDraft();
  remember(asked, {});
  const got = { id: null, call: null, facts: null, waited: false };
  let failure = null;
  try {
    await read(await post(asked, answer, got), asked, answer, got);
  } catch (reason) {
    failure = reason;
    if (reason instanceof TypeError) await pause(500); // a page that is being left fails too: its script ends here
    if (isLost(reason) && got.call) {
      tell(answer, "following");
      failure = await catchUp(answer, got);
    }
  }
  if (got.facts) settle(asked.turns, got.facts);
  else breakOff(asked, failure, got.id);
  // The error of a stream comes after its settlement, if there is one.
  const tries = got.id && !failure?.error ? SETTLED_TRIES : 2;
  const isWhole = got.facts?.budget && got.facts.answer_id && !got.waited && !running.stopped;
  const isOffline = !got.id && failure instanceof TypeError && !navigator.onLine; // there is nobody to ask
  if (isOffline) part("turns").append(...(asked.gone ?? []));
  else if (!signedOut && !isWhole) await refresh(got, tries, asked.question);
  end(answer, got);
  return failure;
}

// An answer goes on, or has been settled, without the connection that it came by. What failed, or null.
async function catchUp(answer, got) {
  try {
    const told = follow(got.call, running.signal);
    for await (const { name, data } of untilDone(told)) {
      if (name === "lost") tell(answer, "following");
      if (name === "anew") {
        words(answer).replaceChildren();
        say(answer, "", "");
      }
      if (name === "token") append(answer, data.text);
      if (name === "block") showBlock(answer, data);
      if (name === "done") got.facts = data;
      if (name === "error") throw data;
    }
    if (got.facts) showLater(told, got.facts.conversation_id);
    return null;
  } catch (reason) {
    return reason;
  }
}

// Stop asks the server, which ends the answer and says by the stream itself what it cost. Before its call has a number
// to leave is to stop, except where answers go on without a reader.
function halt() {
  if (!running || running.stopped) return;
  running.stopped = true;
  announce(sentence("stopping"));
  if (running.call) stopCall();
  else if (!running.isAsked || !("goesOn" in form.dataset)) running.abort();
  else leaveLater(running);
}

// A number that does not come stops nothing.
async function leaveLater(stopped) {
  await pause(ANSWER);
  if (!stopped.call) stopped.abort();
}

async function stopCall() {
  const stopped = running;
  if (!(await stop(stopped.call, csrf.value, () => running !== stopped))) stopped.abort();
}

// Events: held, token… and block…, then done or error. The header names the conversation to who stops before `done`.
async function read(response, asked, answer, got) {
  got.id = response.headers.get("X-Conversation-ID");
  const told = events(response.body);
  for await (const { name, data } of untilDone(told)) {
    if (name === "held") {
      Object.assign(got, { call: data.call, held: data, bytes: 0 });
      running.call = data.call;
      remember(asked, got);
      hold(answer, data);
      answering(got.id);
      showLeftOut(data.left_out, got.id);
      if (running.stopped) stopCall();
    }
    if (name === "token") {
      append(answer, data.text);
      meter(answer, got, data.text);
    }
    if (name === "block") showBlock(answer, data);
    if (name === "done") {
      got.facts = data;
      got.id ??= String(data.conversation_id); // a stream that waited for an answer under way could not say it at first
    }
    if (name === "error") throw data;
  }
  if (!got.facts) throw { message: sentence("broken"), lost: true };
  keepPlace(got.id, asked.question);
  showLater(told, got.id);
}

// The events of an answer, without what may follow its end.
async function* untilDone(told) {
  for (let step; !(step = await told.next()).done; ) {
    yield step.value;
    if (step.value.name === "done") return;
  }
}

// That is the title that the model writes for a new conversation: nothing waits for it.
async function showLater(told, id) {
  try {
    for await (const { name, data } of told) if (name === "title") titled(id, data.title);
  } catch {
    // the next page has it
  }
}

// What is sent with whatever is asked.
function common() {
  const number = (field) => Number(field?.value) || undefined;
  return { conversation_id: number(conversation), max_tokens: number(cap), model: chosenModel(form) };
}

async function post(asked, answer, got) {
  const body = { ...common(), ...asked.body, stream: true, rendered: true };
  const headers = { "Content-Type": "application/json", "X-CSRFToken": csrf.value };
  const { signal } = running;
  for (let tries = BUSY_TRIES; ; tries -= 1) {
    running.isAsked = true;
    const slow = setTimeout(() => tell(answer, "slow"), ANSWER);
    const sent = JSON.stringify(body);
    if ("goesOn" in form.dataset) headers["Idempotency-Key"] = nameOf(asked.path + sent);
    const asking = fetch(asked.path, { method: "POST", headers, body: sent, signal });
    const response = await asking.finally(() => clearTimeout(slow));
    unanswered = null;
    if (response.ok) return response;
    const message = `The server answered ${response.status}. Try again.`;
    const failure = { message, ...(await response.json().catch(() => null)), status: response.status };
    if (failure.error !== "conversation_busy" || !tries) throw failure;
    got.waited = true;
    running.isAsked = false;
    if (running.stopped) running.abort();
    tell(answer, "busy");
    await pause(failure.retry_after_ms);
    signal.throwIfAborted();
  }
}

// Where answers go on without a reader, what nobody answered may have been bought all the same. Sent once more it has the
// same name, and the answer that was bought is told.
function nameOf(sent) {
  if (unanswered?.sent !== sent) unanswered = { sent, name: [...crypto.getRandomValues(new Uint32Array(4))].join("-") };
  return unanswered.name;
}

// What an answer waits for.
function tell(answer, name) {
  say(answer, sentence(name), "");
  announce(sentence(name));
}

// --- one answer, from its beginning to its end ---

function begin(answer) {
  running = new AbortController();
  goingOnAt(prompt, () => form.toggleAttribute("data-running", true)); // shows Stop in the place of Send
  answer.setAttribute("aria-busy", "true");
}

function hold(answer, held) {
  const note = held.fitted ? sentence("fitted", held.max_tokens) : "";
  say(answer, note, `${short(held.reserved)} ${sentence("held", held.max_tokens)}`);
  if (note) announce(note);
  showHeld(held);
}

// What the words so far would cost, until it is known.
function meter(answer, got, text) {
  const { reserved, max_tokens: most, meter: by } = got.held;
  got.bytes += new TextEncoder().encode(text).length;
  const used = Math.min(reserved, by.input + Math.round((by.per_kilobyte * got.bytes) / 1000));
  say(answer, ending(answer), `≈ ${about(used)} ${sentence("of")} ${short(reserved)} ${sentence("held", most)}`);
}

// The facts are those of partials/message.html, in its order: a reload must change no word of them.
function settle(turns, facts) {
  const { cost, usage, outcome, finish_reason: reason, budget, html } = facts;
  const answer = turns.at(-1);
  const tokens = `${usage.input_tokens ?? "—"} in / ${usage.output_tokens ?? "—"} out`;
  const how = outcome === "exact" ? "" : sentence(`outcome.${outcome}`);
  showWhole(answer, html);
  const end = markWordless(answer) ? "" : sentence(`end.${reason}`);
  say(answer, end, [`$${cost.usd}`, tokens, how, facts.model].filter(Boolean).join(" · "));
  number(answer, facts.conversation_id, facts.answer_id, { cut: Boolean(end) });
  if (turns.length > 1) number(turns[0], facts.conversation_id, facts.question_id);
  showBudget(budget);
}

// What came stays. Where nothing came, the message goes back into the box, before what was typed meanwhile.
function breakOff(asked, failure, id) {
  const { turns } = asked;
  const stopped = running.signal.aborted;
  const answer = turns.at(-1);
  if (!stopped) refuse(failure);
  if (words(answer).textContent || (stopped && id)) {
    say(answer, sentence(stopped ? "end.cancelled" : "end.error"), sentence("settling"));
  } else {
    takeBack(asked);
  }
}

function takeBack({ turns, question, body }) {
  takeFilesBack(turns[0]);
  for (const turn of turns) turn.remove();
  sessionStorage.removeItem("asked");
  parent.value = body?.parent_id ?? "";
  part("edited")?.toggleAttribute("hidden", body?.parent_id == null);
  if (question) prompt.value = [question, prompt.value].filter(Boolean).join("\n");
  prompt.dispatchEvent(new Event("input", { bubbles: true })); // as if it was typed: kept as a draft, and priced
}

function end(answer, got) {
  settled(got.id, got.call);
  running = null;
  form.toggleAttribute("data-running", false);
  answer.removeAttribute("aria-busy");
  if (answer.isConnected) announce(spoken(answer));
  // Whoever is at something else by now, such as a title, stays there.
  const { activeElement: at } = document;
  if (at === document.body || form.contains(at)) prompt.focus();
}

// The conversation and the budget as the server has them, once it has this answer: it alone knows what was charged.
// Where no question is new, also without it: turns were taken off the page that are still there.
async function refresh({ id, call }, tries, question) {
  const place = id ?? (conversation.value || null);
  const over = performance.now() + 2 * ANSWER;
  for (; tries && performance.now() < over; tries -= 1) {
    await pause(500);
    const html = await within(ANSWER, pageOf(place ? `/c/${place}/` : location.pathname)).catch(() => null);
    if (html === null) continue;
    const page = new DOMParser().parseFromString(html, "text/html");
    const title = page.getElementById("talk")?.textContent;
    if (title == null) break; // the way to log-in, or to a second step: a page without turns is no empty conversation
    takeBudget(page.querySelector('[data-chat="budget"]'));
    if (!place) return false;
    const turns = page.querySelectorAll('[data-chat="turns"] .turn');
    const found = call && page.querySelector(`.turn[data-call="${call}"]`);
    if (!found && (question || (call && tries > 1))) continue;
    const box = part("turns");
    stayingIn('[data-chat="turns"] > *', () => box.replaceChildren(box.firstElementChild, ...turns));
    showFiles(page);
    keepPlace(place, question);
    showTitle(place, title);
    if (found) announce(spoken(found));
    return Boolean(found);
  }
  const last = part("turns").querySelector(".turn[aria-busy]");
  if (last) say(last, ending(last), sentence("unsettled"));
  return false;
}

async function pageOf(address) {
  const response = await fetch(address);
  return response.ok ? response.text() : null;
}

// --- a page that was reloaded before its answer had come, or before its address was the conversation's ---

function remember({ question }, { id, call }) {
  keep("asked", { question, id, call });
}

// An answer that this tab has left, or that the server names on the conversation's page, is followed to its end.
async function resume() {
  const asked = JSON.parse(sessionStorage.getItem("asked") ?? "null");
  sessionStorage.removeItem("asked");
  const named = part("under-way");
  const isReload = performance.getEntriesByType("navigation")[0]?.type === "reload";
  const isHere = named && (addressed() || (isReload && asked && !asked.call));
  if (!isHere && (!asked || !isReload)) return;
  const call = isHere ? named.dataset.call : asked.call;
  if (document.querySelector(`.turn[data-call="${call}"]`)) return; // the page has it
  if (isHere) named.remove();
  const question = asked && (asked.call === call || (isReload && !asked.call)) ? asked.question : null;
  const turns = [...(question ? [addTurn("user", question)] : []), addTurn("assistant", "")];
  const got = { id: asked?.id ?? addressed(), call, facts: null };
  begin(turns.at(-1));
  running.call = call;
  if (call) remember({ question }, got);
  const failure = call ? await catchUp(turns.at(-1), got) : null;
  if (got.facts) {
    got.id = got.facts.conversation_id;
    settle(turns, got.facts);
    if (question) keepPlace(got.id, question);
  }
  const tries = failure?.status ? 2 : SETTLED_TRIES;
  if (!(got.id && (await refresh(got, tries, question))) && !got.facts) {
    takeBack({ turns, question });
    announce(sentence(question ? "left" : "unanswered"));
  }
  end(turns.at(-1), got);
}

// The conversation that the address names, or null.
function addressed() {
  return location.pathname.match(/^\/c\/(\d+)\/$/)?.[1] ?? null;
}

// --- the page ---

function keepPlace(id, question) {
  showConversation(id, question);
  conversation.value = id;
  history.replaceState(null, "", `/c/${id}/`);
  keepDraft(form); // it belongs to the conversation's own page from now on
}

function refuse(failure) {
  const { status, error, budget } = failure ?? {};
  // A token that is not taken is of before a log-out or a log-in in another tab.
  signedOut = status === 401 || error === "csrf_failed";
  const lost = failure instanceof Error;
  const ours = signedOut ? sentence("signed_out") : lost ? sentence(navigator.onLine ? "lost" : "offline") : null;
  showRefusal(failure, ours ?? failure?.message, { signedOut, lost });
  if (budget?.remaining != null && !budget.scope.includes("/")) showBudget(budget); // a seat's figures are not for all
}

// What could not be sent is in the box still.
function backOnline() {
  part("refusal-words").textContent = sentence("online");
  part("again").hidden = false;
}

function ignore(event) {
  event.preventDefault();
  event.stopPropagation();
}

function isLost(reason) {
  return reason instanceof TypeError || Boolean(reason?.lost);
}

function pause(milliseconds) {
  return new Promise((done) => setTimeout(done, milliseconds));
}
