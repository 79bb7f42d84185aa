"use strict";
// The page of a server of finished runs. Every text that comes from outside is set as text, never
// as HTML; nothing is loaded from elsewhere. An answer that arrives late is thrown away.

const byId = (id) => document.getElementById(id);
const state = {
  runs: [], history: [], dropped: new Set(), user: null, userPlace: -1, numUsers: 0, target: null,
};
const TYPING_PAUSE_MS = 150;

/** Make an element with text and attributes. */
function make(name, text, attributes = {}) {
  const element = document.createElement(name);
  if (text !== undefined && text !== null) element.textContent = String(text);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
}

function button(text, onClick, label) {
  const element = make("button", text, { type: "button" });
  if (label) element.setAttribute("aria-label", label);
  element.addEventListener("click", onClick);
  return element;
}

/** Ask the server; an error carries its one line and the nearest titles. */
async function call(path, body) {
  const headers = {};
  const token = byId("token").value;
  if (token) headers.Authorization = `Bearer ${token}`;
  const options = { headers };
  if (body !== undefined) {
    headers["Content-Type"] = "application/json";
    options.method = "POST";
    options.body = JSON.stringify(body);
  }
  const answer = await fetch(path, options);
  const found = await answer.json().catch(() => null);
  if (answer.ok) return found;
  if (answer.status === 401) byId("token-row").hidden = false;
  const error = found?.error ?? { message: `status ${answer.status}`, nearest: [] };
  const near = error.nearest.length ? ` Near: ${error.nearest.join(", ")}` : "";
  throw new Error(error.message + near);
}

/** Show what went wrong where it belongs. */
async function telling(work) {
  byId("problem").textContent = "";
  try {
    await work();
  } catch (error) {
    byId("problem").textContent = error.message;
  }
}

// ---------------------------------------------------------------- runs

async function loadRuns() {
  const { runs } = await call("/v1/runs");
  state.runs = runs;
  const [first] = runs;
  byId("about").textContent = `${runs.length} run${runs.length > 1 ? "s" : ""} on ${first.data}, `
    + `${first.num_titles.toLocaleString()} titles`;
  const field = byId("runs");
  field.querySelectorAll("label").forEach((old) => old.remove());
  for (const run of runs) {
    const label = make("label");
    const box = make("input", null, { type: "checkbox", value: run.name });
    box.checked = true;
    const what = [run.label, run.model, run.loss, run.decoder].filter(Boolean).join(", ");
    label.append(box, ` ${what} `, make("span", run.name, { class: "quiet" }));
    field.append(label);
  }
  const masks = [...new Set(runs.flatMap((run) => run.masks))];
  byId("mask").replaceChildren(make("option", "of the run", { value: "" }),
    ...masks.map((name) => make("option", name, { value: name })));
  const { total } = await call(`/v1/users?limit=1`);
  state.numUsers = total;
  for (const id of ["user-before", "user-next"]) byId(id).disabled = total === 0;
}

const chosenRuns = () => {
  const names = [...byId("runs").querySelectorAll("input:checked")].map((box) => box.value);
  return state.runs.filter((run) => names.includes(run.name));
};

// ---------------------------------------------------------------- history

let typing;
let searches = 0;

function search() {
  clearTimeout(typing);
  typing = setTimeout(() => telling(showFound), TYPING_PAUSE_MS);
}

async function showFound() {
  const query = byId("query").value.trim();
  const mine = ++searches;
  const items = query ? (await call(`/v1/items?limit=8&query=${encodeURIComponent(query)}`)).items : [];
  if (mine !== searches) return;
  const rows = items.map((item) => {
    const row = make("li");
    row.append(button(item.title, () => add(item.title), `Add ${item.title}`));
    return row;
  });
  byId("found").replaceChildren(...rows);
  if (query && !items.length) byId("problem").textContent = "No title like that.";
}

async function addFirst() {
  clearTimeout(typing);
  await showFound();
  byId("found").querySelector("button")?.click();
}

function add(title) {
  state.history.push(title);
  forgetUser();
  byId("query").value = "";
  byId("found").replaceChildren();
  byId("query").focus();
  showHistory();
}

function forgetUser() {
  state.target = state.user = null;
}

function showHistory() {
  const rows = state.history.map((title, place) => {
    const row = make("li");
    const isDropped = state.dropped.has(place);
    const toggle = button(title, () => drop(place), `${isDropped ? "Take back" : "Drop"} ${title}`);
    toggle.setAttribute("aria-pressed", String(isDropped));
    if (isDropped) toggle.className = "dropped";
    row.append(toggle);
    return row;
  });
  byId("history").replaceChildren(...rows);
  byId("history-empty").hidden = rows.length > 0;
  const line = byId("user-line");
  line.hidden = state.user === null;
  if (state.user !== null) {
    line.textContent = `Test user ${state.user.user} (${state.userPlace + 1} of ${state.numUsers}); `
      + `the true next title: ${state.target}`;
  }
}

/** What if: leave an item out, or take it back, and ask again. */
function drop(place) {
  if (!state.dropped.delete(place)) state.dropped.add(place);
  showHistory();
  byId("history").children[place].querySelector("button").focus();
  if (byId("answers").children.length) telling(ask);
}

function clearHistory() {
  state.history = [];
  state.dropped.clear();
  forgetUser();
  byId("answers").replaceChildren();
  byId("agreement").textContent = "";
  byId("why-section").hidden = true;
  showHistory();
}

async function takeUser(step) {
  const place = (Math.max(state.userPlace, step > 0 ? -1 : 0) + step + state.numUsers) % state.numUsers;
  const { users: [user] } = await call(`/v1/users?limit=1&offset=${place}`);
  clearHistory();
  state.userPlace = place;
  state.user = user;
  state.history = user.history;
  state.target = user.target;
  showHistory();
  await ask();
}

// ---------------------------------------------------------------- answers

let asks = 0;

function historyAsked() {
  return state.history.filter((_, place) => !state.dropped.has(place));
}

function settingsAsked() {
  const body = { history: historyAsked(), k: Number(byId("k").value) };
  body.exclude_history = byId("exclude").checked;
  if (byId("mask").value) body.mask = byId("mask").value;
  for (const [id, field] of [["beam-width", "beam_width"], ["temperature", "temperature"]]) {
    if (byId(id).value !== "") body[field] = Number(byId(id).value);
  }
  return body;
}

async function ask() {
  const mine = ++asks;
  const body = settingsAsked();
  if (!body.history.length) throw new Error("The history is empty: find a title first.");
  byId("ask").disabled = true;
  try {
    const runs = chosenRuns();
    if (!runs.length) throw new Error("Choose a run.");
    const results = await Promise.all(runs.map((run) => answerOf(run, bodyFor(run, body))));
    if (mine === asks) showAnswers(results);
  } finally {
    if (mine === asks) byId("ask").disabled = false;
  }
}

/** What one run is asked: one without masks answers as it is. */
function bodyFor(run, body) {
  const { mask, ...rest } = body;
  return mask && run.masks.length ? body : rest;
}

/** One run's list; a run that refuses does not hide the others. */
async function answerOf(run, body) {
  try {
    const { recommendations } = await call("/v1/recommend", { ...body, run: run.name });
    return { run, body, list: recommendations };
  } catch (error) {
    return { run, body, list: [], error: error.message };
  }
}

function showAnswers(results) {
  const votes = new Map();
  for (const { list } of results) {
    for (const { title } of list) votes.set(title, (votes.get(title) ?? 0) + 1);
  }
  byId("answers").replaceChildren(...results.map((result) => listOf(result, votes, results.length)));
  const answered = results.filter(({ list }) => list.length);
  const all = [...votes.values()].filter((count) => count === answered.length).length;
  byId("agreement").textContent = answered.length > 1
    ? `${all} titles stand in all ${answered.length} lists, ${votes.size} in at least one.` : "";
}

function listOf({ run, body, list, error }, votes, numRuns) {
  const box = make("article");
  box.append(make("h3", `${run.label}${under(body)} (${run.name})`));
  if (error) {
    box.append(make("p", error, { role: "alert" }));
    return box;
  }
  if (state.target !== null) box.append(make("p", rankOfTarget(list), { class: "quiet" }));
  const table = make("table");
  const head = make("tr");
  for (const [name, kind] of [["#", "number"], ["title", ""], ["log-prob", "number"], ["", ""]]) {
    head.append(make("th", name, { class: kind, scope: "col" }));
  }
  table.append(head);
  for (const one of list) table.append(rowOf(run, one, votes.get(one.title), numRuns, body));
  box.append(table);
  return box;
}

const under = (body) => (body.mask ? ` under mask ${body.mask}` : "");

function rankOfTarget(list) {
  const place = list.find(({ title }) => title === state.target);
  return place ? `The true next title has rank ${place.rank}.`
    : `The true next title is not among these ${list.length}.`;
}

function rowOf(run, one, votes, numRuns, body) {
  const row = make("tr");
  const title = make("td", one.title, { class: "title" });
  if (one.title === state.target) {
    row.className = "hit";
    title.append(" ✓ true next");
  }
  if (numRuns > 1) {
    title.append(" ", make("span", votes > 1 ? `in ${votes} of ${numRuns}` : "only here", { class: "shared" }));
  }
  row.append(make("td", one.rank, { class: "number" }), title, make("td", number(one.log_prob), { class: "number" }));
  const cell = make("td");
  if (run.kind === "llm") {
    cell.append(button("Why", () => telling(() => why(run, one.title, body)), `Why ${one.title}`));
  }
  row.append(cell);
  return row;
}

const number = (value) => (value === null ? "–" : value.toFixed(2));

// ---------------------------------------------------------------- why

async function why(run, title, body) {
  const asked = { run: run.name, history: body.history, title };
  if (body.mask) asked.mask = body.mask;
  const told = await call("/v1/why", asked);
  const names = told.parts.map((part) => (part.title === null ? part.name : part.title));
  const box = byId("why");
  box.replaceChildren(
    make("p", `${told.title}, by ${run.label}${under(body)}: log-probability ${number(told.log_prob)}`),
    make("h3", "Path through the trie of titles"),
    make("p", "Each token with its probability among those that may follow; dashed: only one may.", { class: "quiet" }),
    pathOf(told.path),
    make("h3", "Attention by layer"),
    make("p", "Share that the tokens which write the title give to each part, mean over heads.", { class: "quiet" }),
    scrolled(attentionOf(told, names)),
    make("h3", "Who sees whom"),
    make("p", `Layers, shallow first: ${told.layers.map((l) => l.pattern[0].toUpperCase()).join("")}. `
      + "A row looks at its columns.", { class: "quiet" }),
    masksOf(told, names),
  );
  byId("why-section").hidden = false;
  byId("why-head").focus();
}

function pathOf(path) {
  const list = make("ol", null, { class: "steps" });
  for (const step of path) {
    const row = make("li");
    row.append(make("code", step.token.replaceAll("\n", "⏎") || "∅"), ` ${percent(step.prob)}`);
    if (step.num_choices === 1) {
      row.className = "forced";
    } else {
      const others = step.others.map((one) => `${one.token} ${percent(one.prob)}`).join(", ");
      row.append(make("div", `${step.rank}. of ${step.num_choices}; others: ${others}`, { class: "shared" }));
    }
    list.append(row);
  }
  return list;
}

const percent = (share) => `${(100 * share).toFixed(share < 0.1 ? 1 : 0)} %`;

function attentionOf(told, names) {
  const rows = told.layers.map((layer, index) => [`${index} ${layer.pattern}`, layer.attention]);
  const most = Math.max(...told.layers.flatMap((layer) => layer.attention.slice(1)), 0.01);
  return gridOf(shortNames(told.parts), names, rows, (share) => share / most, (share) => Math.round(100 * share));
}

function masksOf(told, names) {
  const box = make("div", null, { class: "masks" });
  for (const pattern of new Set(told.layers.map((layer) => layer.pattern))) {
    const shares = told.masks[pattern];
    const layers = told.layers.flatMap((layer, index) => (layer.pattern === pattern ? [index] : []));
    const figure = make("div", null, { class: "scroll" });
    figure.append(make("h3", `${pattern}: layers ${layers.join(", ")}`));
    const short = shortNames(told.parts);
    const rows = shares.map((row, place) => [short[place], row]);
    figure.append(gridOf(short, names, rows, (share) => share, (share) => (share === 0 ? "" : share === 1 ? "■" : "◣")));
    box.append(figure);
  }
  return box;
}

const shortNames = (parts) => parts.map(({ name }) =>
  (name.startsWith("item") ? name.slice(5) : name === "template" ? "…" : name[0].toUpperCase()));

/** A table of shaded cells; columns have short names, and long ones on pointing at them. */
function gridOf(short, names, rows, shade, text) {
  const table = make("table", null, { class: "grid" });
  const head = make("tr");
  head.append(make("td"));
  short.forEach((name, place) => head.append(make("th", name, { scope: "col", title: names[place] })));
  table.append(head);
  for (const [name, shares] of rows) {
    const row = make("tr");
    row.append(make("th", name, { scope: "row", class: "side" }));
    shares.forEach((share, place) => {
      const cell = make("td", text(share), { title: `${names[place]}: ${percent(share)}` });
      cell.style.backgroundColor = `rgba(var(--cell), ${Math.min(0.75, 0.75 * shade(share)).toFixed(3)})`;
      row.append(cell);
    });
    table.append(row);
  }
  return table;
}

function scrolled(element) {
  const box = make("div", null, { class: "scroll", tabindex: "0", role: "group", "aria-label": "table" });
  box.append(element);
  return box;
}

// ---------------------------------------------------------------- start

byId("query").addEventListener("input", search);
byId("query").addEventListener("keydown", (event) => {
  if (event.key === "Enter") telling(addFirst);
});
byId("clear").addEventListener("click", clearHistory);
byId("user-next").addEventListener("click", () => telling(() => takeUser(1)));
byId("user-before").addEventListener("click", () => telling(() => takeUser(-1)));
byId("ask").addEventListener("click", () => telling(ask));
byId("token").addEventListener("change", () => telling(loadRuns));
telling(loadRuns);
