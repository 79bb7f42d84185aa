"use strict";
// What the runs' own metrics.json says: all test examples, then its slices. Uses page.js.

const numbers = { told: null };
const MAIN = /^(HR|NDCG|MRR)@\d+$|^(trie_NLL|vocab_NLL|coverage@\d+|num_examples)$/;
const WHOLE = /^num_|count$/;

async function showNumbers() {
  if (!byId("numbers").open) return;
  const runs = chosenRuns();
  if (!runs.length) throw new Error("Choose a run.");
  const told = await Promise.all(runs.map((run) => call(`/v1/run?run=${encodeURIComponent(run.name)}`)));
  numbers.told = told;
  const metrics = [...new Set(told.flatMap(({ metrics: { test = {} } }) => Object.keys(test)))];
  const within = [...new Set(metrics.filter((name) => /\/(?!count)[^/]*(?<!_se)$/.test(name))
    .map((name) => name.split("/")[1]))];
  const choice = byId("slice-metric");
  const before = choice.value;
  choice.replaceChildren(...within.map((name) => make("option", name, { value: name })));
  if (within.includes(before)) choice.value = before;
  byId("numbers-all").replaceChildren(scrolled(numberTable(told, metrics.filter((name) => MAIN.test(name)), (name) => name)));
  showSlices();
}

function showSlices() {
  const told = numbers.told;
  const metric = byId("slice-metric").value;
  const names = told.flatMap(({ metrics: { test = {} } }) => Object.keys(test));
  const slices = [...new Set(names.filter((name) => name.endsWith("/count")).map((name) => name.split("/")[0]))];
  const counts = (slice) => [...new Set(told.map((run) => run.metrics.test?.[`${slice}/count`]).filter((n) => n !== undefined))];
  const shown = slices.map((slice) => `${slice}/${metric}`);
  byId("numbers-slices").replaceChildren(scrolled(numberTable(told, shown, (name) => {
    const slice = name.split("/")[0];
    return `${slice.replaceAll("_", " ")} (${counts(slice).map((n) => n.toLocaleString()).join(" / ")})`;
  })));
}

/** A row a number, a column a run; the standard error over users stands behind it. */
function numberTable(told, names, label) {
  const table = make("table", null, { class: "numbers" });
  const head = make("tr");
  head.append(make("td"));
  for (const run of told) {
    const cell = make("th", run.label, { scope: "col", class: "number", title: run.name });
    cell.append(make("div", `${run.data}, seed ${run.seed}`, { class: "shared" }));
    head.append(cell);
  }
  table.append(head);
  for (const name of names) {
    const row = make("tr");
    row.append(make("th", label(name), { scope: "row" }));
    for (const { metrics: { test = {} } } of told) {
      const cell = make("td", valueOf(name, test[name]), { class: "number" });
      if (test[name] && Number.isFinite(test[`${name}_se`])) { // without a hit there is no spread to show
        cell.append(make("span", ` ± ${valueOf(name, test[`${name}_se`])}`, { class: "shared" }));
      }
      row.append(cell);
    }
    table.append(row);
  }
  return table;
}

function valueOf(name, value) {
  if (value === undefined || value === null) return "–";
  if (WHOLE.test(name)) return value.toLocaleString();
  return value.toFixed(name.endsWith("NLL") ? 3 : 4);
}

byId("numbers").addEventListener("toggle", () => telling(showNumbers));
byId("runs").addEventListener("change", () => telling(showNumbers));
byId("slice-metric").addEventListener("change", showSlices);
