// The strip under the composer: what is left, held and spent in the whole workspace, in figures and as a bar.

const part = (name) => document.querySelector(`[data-chat="${name}"]`);

import { stayingIn } from "./focus.js";
import { sentence } from "./turns.js";

// What an answer says of the budget. Without it the figures are unknown now, and a dash says so.
export function showBudget(budget) {
  part("held-for").hidden = true;
  part("unread")?.remove();
  for (const name of ["remaining", "reserved", "spent"]) part(name).textContent = budget ? short(budget[name]) : "—";
  if (!budget) return;
  Object.assign(part("budget").dataset, { allocated: budget.allocated, spent: budget.spent });
  drawBar(budget.allocated, budget.spent, budget.reserved);
  warn(budget);
}

// That most of it is spent, or all: as the server's page says it.
function warn({ allocated, spent }) {
  const share = allocated ? Math.floor((100 * spent) / allocated) : 0;
  const level = [100, 80].find((level) => share >= level);
  part("warn").textContent = level ? sentence(`warn.${level}`, share) : "";
}

// While an answer is under way: what is left now, and what is held for this answer alone.
export function showHeld({ reserved, remaining }) {
  part("held-for").hidden = false;
  part("reserved").textContent = short(reserved);
  if (remaining != null) part("remaining").textContent = short(remaining);
  const { allocated, spent } = part("budget").dataset;
  // What is neither left nor known to be spent is held, by this answer or another.
  if (allocated) drawBar(allocated, spent, remaining == null ? reserved : allocated - spent - remaining);
}

// As a page of the server has it.
export function takeBudget(strip) {
  if (strip) stayingIn('[data-chat="budget"]', () => part("budget").replaceWith(strip));
}

function drawBar(allocated, spent, reserved) {
  const share = (amount) => `${Math.min(100, (100 * amount) / allocated)}%`;
  // Where nothing is allocated the bar is full, as the server draws it: an empty one would look as if all were left.
  const [used, held] = allocated > 0 ? [share(spent), share(reserved)] : ["100%", "0%"];
  const [black, hatched] = document.querySelectorAll("#strip-bar [data-bar]");
  black?.setAttribute("width", used);
  hatched?.setAttribute("x", used);
  hatched?.setAttribute("width", held);
}

// Microcents for the eye, as the server writes them; whole numbers throughout, so no digit is invented.
// `atMost`: never less than the amount, for what is said to be the most.
export function short(microcents, { atMost = false } = {}) {
  const size = BigInt(Math.abs(microcents));
  const places = size >= 100_000_000n || !size ? 2 : size >= 1_000_000n ? 4 : 6;
  const scale = 10n ** BigInt(places);
  const step = 100_000_000n / scale;
  const [below, twice] = [size / step, (size % step) * 2n];
  const isUp = atMost ? twice > 0n : twice > step || (twice === step && below % 2n === 1n);
  const units = below + (isUp ? 1n : 0n);
  const cents = String(units % scale).padStart(places, "0");
  return `${microcents < 0 ? "−" : ""}$${(units / scale).toLocaleString("en-US")}.${cents}`;
}

// The same of a figure that nobody knows exactly: with two leading digits, since more would be invented.
export function about(microcents) {
  const step = 10 ** Math.max(0, String(microcents).length - 2);
  return short(Math.round(microcents / step) * step).replace(/(\.\d\d\d*?)0+$/, "$1");
}
