// The card of what refused a message. Its words and links are the page's; this fills in figures and shows what helps.

import { short } from "./budget.js";
import { goToEnd } from "./scroll.js";

const part = (name) => document.querySelector(`[data-chat="${name}"]`);

// This page with the version or the message that it is of. What else its address says is done already.
function here() {
  const asked = new URLSearchParams(location.search);
  for (const name of [...asked.keys()]) if (name !== "at" && name !== "edit") asked.delete(name);
  return [location.pathname, asked].filter(String).join("?");
}

// What the page came with, such as that something is renamed, or what refused it: it is read out with the page's title and
// with its box, until the next message is sent.
export function forgetWhatCame(prompt) {
  const told = `Error: ${document.getElementById("talk").textContent}`;
  if (document.title.startsWith(told)) document.title = document.title.replace("Error: ", "");
  prompt.setAttribute("aria-describedby", "price");
}

// `failure` is an error of the API, or null; `message` what is said of it.
export function showRefusal(failure, message, { signedOut, lost }) {
  const { status, error, reason, budget, confirm_email: waits, retry_after_ms: later } = failure ?? {};
  const known = budget?.needed != null && budget.remaining != null;
  const fits = budget?.affordable_max_tokens;
  part("refusal-words").textContent = message ?? "";
  part("refusal-figures").hidden = !known;
  part("refusal-needed").textContent = known ? short(budget.needed, { atMost: true }) : "";
  part("refusal-left").textContent = known ? short(budget.remaining) : "";
  part("refusal-scope").textContent = failure?.budget_name ?? "";
  const renewal = part("refusal-renews"); // as the page was written, maybe a period ago
  const lapses = !budget?.scope?.includes("/workflow:"); // a conversation's budget is for its whole life
  const renews = reason === "exhausted" && !waits && lapses && renewal?.dataset.at * 1000 > Date.now();
  renewal?.toggleAttribute("hidden", !renews);
  part("fits").hidden = !(fits > 0);
  part("fits").value = fits ?? "";
  part("fits-tokens").textContent = fits?.toLocaleString("en-US") ?? "";
  part("again").hidden = !later && !(lost && navigator.onLine);
  part("log-in").href = `/login/?next=${encodeURIComponent(here())}`;
  part("log-in").hidden = !signedOut;
  part("top-up")?.toggleAttribute("hidden", !failure?.raised_by?.includes("operator"));
  part("ask")?.toggleAttribute("hidden", !budget);
  part("ask")?.setAttribute("href", `/budget/ask/${budget?.needed ? `?needed=${budget.needed}` : ""}`);
  part("refusal-link").hidden = status !== 402 && error !== "account_on_hold";
  part("refusal-new").hidden = error !== "prompt_too_long";
  part("refusal").toggleAttribute("data-lost", Boolean(lost));
  part("refusal").hidden = !failure;
  if (failure) goToEnd();
}
