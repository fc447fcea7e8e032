// Swagger's page, mended for who reads by ear or by keyboard: its headings skip levels, its tables of answers are regions
// without names of their own, and what scrolls cannot be reached. It draws itself anew, so each change is looked at.

const page = document.getElementById("swagger-ui");

function mend() {
  level(".opblock-tag, .models > h4", 2);
  level(".opblock-body h4, .opblock-body h5", 3);
  for (const pre of page.querySelectorAll("pre.example:not([tabindex])")) pre.tabIndex = 0;
  for (const table of page.querySelectorAll("table[role=region]:not([aria-label])")) {
    const call = table.closest(".opblock").querySelector(".opblock-summary-control").textContent;
    table.setAttribute("aria-label", `${call}: answers`);
  }
}

function level(headings, number) {
  for (const heading of page.querySelectorAll(headings)) {
    if (heading.ariaLevel) continue;
    heading.setAttribute("role", "heading");
    heading.ariaLevel = number;
  }
}

new MutationObserver(mend).observe(page, { childList: true, subtree: true });
