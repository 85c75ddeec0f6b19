// The dashboard: a client of the API like any other. Text from the server is only ever set as text, never as markup.

const $ = (selector) => document.querySelector(selector);
const API = "/api/v1";
const ENDED = ["succeeded", "failed", "cancelled"];

// --- speaking with the server ------------------------------------------------------------------------------------

const token = () => sessionStorage.getItem("atelier-token");

async function ask(path, options = {}) {
  const headers = new Headers(options.headers);
  if (token()) headers.set("Authorization", `Bearer ${token()}`);
  const response = await fetch(path, { ...options, headers });
  if (response.status === 401) {
    $("#door").hidden = false;
    throw new Error("a token is needed");
  }
  if (!response.ok) {
    const problem = await response.json().catch(() => ({}));
    const hint = problem.hint ? ` ${problem.hint}` : "";
    throw new Error(`${problem.detail ?? problem.title ?? response.statusText}.${hint}`);
  }
  return response;
}

const get = async (path) => (await ask(path)).json();
const post = async (path) => ask(path, { method: "POST" });

// A picture that needs a token cannot be an <img src> by itself.
async function pictureUrl(path) {
  if (!token()) return path;
  return URL.createObjectURL(await (await ask(path)).blob());
}

// --- small pieces of page ----------------------------------------------------------------------------------------

function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

function button(text, action, properties = {}) {
  const made = element("button", { type: "button", textContent: text, ...properties });
  made.addEventListener("click", async () => {
    made.disabled = true;
    try {
      await action();
    } catch (error) {
      say(error.message);
    } finally {
      made.disabled = false;
    }
  });
  return made;
}

const say = (text) => { $("#answer").textContent = text; };

function bytes(n) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let at = 0;
  while (n >= 1024 && at < units.length - 1) { n /= 1024; at += 1; }
  return `${at && n < 10 ? n.toFixed(1) : Math.round(n)} ${units[at]}`;
}

const clock = (time) => new Date(time).toLocaleString();

// --- jobs --------------------------------------------------------------------------------------------------------

const jobs = new Map();      // id → job, as last heard
const cards = new Map();     // id → its list item
let older = null;            // cursor of the next page of ended jobs

function title(job) {
  const what = job.source?.name && job.source.name !== "http" ? job.source.name : job.inputs?.[0]?.name;
  return [job.kind, what, job.params?.prompt].filter(Boolean).join(" · ");
}

function phaseOf(progress) {
  return `${progress.phase ?? ""}${progress.steps ? ` ${progress.step} of ${progress.steps}` : ""}`;
}

function card(job) {
  const item = element("li", { id: `job-${job.id}` });
  item.append(element("p", { textContent: title(job), title: job.id }));
  const state = [job.status, job.model];
  if (job.attempt > 1) state.push(`attempt ${job.attempt}`);
  item.append(element("p", { className: job.status, textContent: state.filter(Boolean).join(" · ") }));
  if (!ENDED.includes(job.status)) {
    const progress = job.progress ?? {};
    item.append(element("progress", { max: 1, value: progress.fraction ?? 0, ariaLabel: "Progress" }));
    item.append(element("p", { className: "phase", textContent: phaseOf(progress) }));
    item.append(element("p", { className: "so-far", textContent: progress.text ?? "" }));
  }
  if (job.error) item.append(element("p", { className: "failed", textContent: `${job.error.message} ${job.error.hint ?? ""}` }));
  if (typeof job.result?.text === "string") item.append(element("p", { textContent: job.result.text }));
  for (const output of job.outputs ?? []) item.append(...outputViews(job, output));
  item.append(actions(job));
  return item;
}

function outputViews(job, output) {
  const size = output.width ? `${output.width} × ${output.height}, ` : "";
  const facts = `${size}${bytes(output.bytes)}`;
  const views = [];
  if (output.media_type.startsWith("image/")) {
    const image = element("img", { alt: `Result of ${title(job)}`, loading: "lazy" });
    pictureUrl(output.url).then((url) => { image.src = url; }, () => {});
    image.addEventListener("click", () => {
      $("#viewer img").src = image.src;
      $("#viewer p").textContent = `${output.name} · ${facts}`;
      $("#viewer").showModal();
    });
    views.push(image);
  }
  views.push(element("p", { textContent: facts }));
  return views;
}

function actions(job) {
  const row = element("div", { className: "actions" });
  const path = `${API}/jobs/${job.id}`;
  if (!ENDED.includes(job.status)) row.append(button("Cancel", () => post(`${path}/cancel`)));
  for (const output of job.outputs ?? []) {
    row.append(button("Download", async () => {
      const url = URL.createObjectURL(await (await ask(output.url)).blob());
      element("a", { href: url, download: output.name }).click();
      setTimeout(() => URL.revokeObjectURL(url), 60_000);
    }));
  }
  if (job.status === "failed" || job.status === "cancelled") row.append(button("Try again", () => post(`${path}/retry`)));
  if (ENDED.includes(job.status)) {
    row.append(button("Delete", async () => {
      if (confirm("Remove this job and its files?")) await ask(path, { method: "DELETE" });
    }));
  }
  return row;
}

function put(job) {
  const before = jobs.get(job.id);
  jobs.set(job.id, job);
  const made = card(job);
  const old = cards.get(job.id);
  cards.set(job.id, made);
  const list = ENDED.includes(job.status) ? $("#ended") : $("#live");
  if (old && old.parentElement === list) old.replaceWith(made);
  else {
    old?.remove();
    // Ids sort by time: the newest result first, the oldest waiting job first.
    const newestFirst = list.id === "ended";
    const next = [...list.children].find((other) => (newestFirst ? other.id < made.id : other.id > made.id));
    list.insertBefore(made, next ?? null);
  }
  if (before?.status !== job.status) refreshQueue();
  $("#idle").hidden = $("#live").children.length > 0;
}

function progressed(id, progress) {
  const job = jobs.get(id);
  const item = cards.get(id);
  if (!job || !item || ENDED.includes(job.status)) return;
  job.progress = progress;
  const bar = item.querySelector("progress");
  if (bar) bar.value = progress.fraction ?? 0;
  const phase = item.querySelector(".phase");
  if (phase) phase.textContent = phaseOf(progress);
  // A caption as far as it is.
  const text = item.querySelector(".so-far");
  if (text) text.textContent = progress.text ?? "";
  if (job.kind !== "upscale" && job.kind !== "caption") preview(job, item);
}

// The running picture, as far as it is; asked for every three seconds at most.
async function preview(job, item) {
  if (Date.now() - (item.previewed ?? 0) < 3000) return;
  item.previewed = Date.now();
  const blob = await ask(`${API}/jobs/${job.id}/preview`).then((response) => response.blob(), () => null);
  if (!blob || !blob.type.startsWith("image/")) return;
  let image = item.querySelector("img");
  if (!image) {
    image = element("img", { alt: "The picture so far" });
    item.querySelector(".phase")?.after(image);
  }
  URL.revokeObjectURL(image.src);
  image.src = URL.createObjectURL(blob);
}

function removed(id) {
  jobs.delete(id);
  cards.get(id)?.remove();
  cards.delete(id);
  refreshQueue();
}

async function loadJobs() {
  const live = await Promise.all(["running", "queued", "retrying"].map((status) => get(`${API}/jobs?status=${status}&limit=100`)));
  live.flatMap((page) => page.jobs).forEach(put);
  const seen = new Set(live.flatMap((page) => page.jobs).map((job) => job.id));
  for (const [id, job] of jobs) {
    if (!ENDED.includes(job.status) && !seen.has(id)) {
      await get(`${API}/jobs/${id}`).then(put, () => removed(id));
    }
  }
  const page = await get(`${API}/jobs?limit=24`);
  page.jobs.filter((job) => ENDED.includes(job.status)).forEach(put);
  older ??= page.next_cursor;
  $("#more").hidden = !older;
}

$("#more").addEventListener("click", async () => {
  const page = await get(`${API}/jobs?limit=24&cursor=${encodeURIComponent(older)}`);
  page.jobs.filter((job) => ENDED.includes(job.status)).forEach(put);
  older = page.next_cursor;
  $("#more").hidden = !older;
});

let queueTimer = null;
function refreshQueue() {
  queueTimer ??= setTimeout(async () => {
    queueTimer = null;
    const queue = await get(`${API}/queue`).catch(() => null);
    if (!queue) return;
    const counts = Object.entries(queue.counts).filter(([, n]) => n > 0).map(([status, n]) => `${n} ${status}`);
    const stands = queue.paused ? " · paused" : queue.blocked ? ` · stands still: ${queue.blocked}` : "";
    $("#counts").textContent = (counts.join(", ") || "no jobs yet") + stands;
    $("#pause").textContent = queue.paused ? "Resume" : "Pause";
    $("#pause").dataset.path = queue.paused ? "resume" : "pause";
  }, 150);
}

$("#pause").addEventListener("click", async () => {
  await post(`${API}/queue/${$("#pause").dataset.path ?? "pause"}`).catch((error) => say(error.message));
  refreshQueue();
});

// --- live: events, and polling where they do not come ----------------------------------------------------------------

let lastEvent = null;

async function watch() {
  const headers = lastEvent ? { "Last-Event-ID": lastEvent } : {};
  const response = await ask(`${API}/events`, { headers });
  $("#state").textContent = "live";
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    text += value;
    const blocks = text.split("\n\n");
    text = blocks.pop();
    blocks.forEach(heard);
  }
}

function heard(block) {
  const fields = { event: "message", data: "" };
  for (const line of block.split("\n")) {
    const colon = line.indexOf(":");
    if (colon > 0) fields[line.slice(0, colon)] = line.slice(colon + 1).trimStart();
  }
  if (fields.id) lastEvent = fields.id;
  if (!fields.data) return;
  const data = JSON.parse(fields.data);
  if (fields.event === "job.updated") put(data);
  if (fields.event === "job.progress") progressed(data.id, data.progress);
  if (fields.event === "job.removed") removed(data.id);
}

async function live() {
  for (;;) {
    await watch().catch(() => {});
    $("#state").textContent = "asking every 2 s";
    // The stream has ended or never began: poll, and try it again.
    for (let round = 0; round < 3; round += 1) {
      await new Promise((resolve) => setTimeout(resolve, 2000));
      await loadJobs().catch((error) => { $("#state").textContent = `no answer: ${error.message}`; });
    }
  }
}

// --- a new job ---------------------------------------------------------------------------------------------------

const canvas = $("#preview");
let picture = null;          // { file, bitmap, crop: {x, y, width, height} | null }

async function take(file) {
  try {
    picture = { file, bitmap: await createImageBitmap(file), crop: null };
  } catch {
    // A kind that browsers do not show, such as TIFF: the server decides.
    picture = { file, bitmap: null, crop: null };
  }
  draw();
}

function draw() {
  $("#stage").hidden = !picture;
  if (!picture) return;
  const { file, bitmap, crop } = picture;
  canvas.hidden = !bitmap;
  const size = bitmap ? `, ${bitmap.width} × ${bitmap.height}` : " (no preview for this type)";
  const part = crop ? `, cropped to ${crop.width} × ${crop.height}: sent as PNG, without the photo's EXIF` : "";
  $("#picked").textContent = `${file.name || "pasted picture"}, ${bytes(file.size)}${size}${part}`;
  if (!bitmap) return;
  const scale = Math.min(1, 900 / bitmap.width, 700 / bitmap.height);
  canvas.width = Math.max(1, Math.round(bitmap.width * scale));
  canvas.height = Math.max(1, Math.round(bitmap.height * scale));
  const paint = canvas.getContext("2d");
  paint.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  if (!crop) return;
  paint.fillStyle = "#000a";
  paint.fillRect(0, 0, canvas.width, canvas.height);
  const [x, y, w, h] = [crop.x, crop.y, crop.width, crop.height];
  paint.drawImage(bitmap, x, y, w, h, x * scale, y * scale, w * scale, h * scale);
  paint.strokeStyle = "#fff";
  paint.strokeRect(x * scale, y * scale, w * scale, h * scale);
}

let dragFrom = null;
function pointAt(event) {
  const box = canvas.getBoundingClientRect();
  const { bitmap } = picture;
  const clamp = (value, most) => Math.min(Math.max(value, 0), most);
  return {
    x: clamp(((event.clientX - box.left) / box.width) * bitmap.width, bitmap.width),
    y: clamp(((event.clientY - box.top) / box.height) * bitmap.height, bitmap.height),
  };
}

canvas.addEventListener("pointerdown", (event) => {
  if (!picture?.bitmap) return;
  dragFrom = pointAt(event);
  canvas.setPointerCapture(event.pointerId);
});
canvas.addEventListener("pointermove", (event) => {
  if (!dragFrom) return;
  const to = pointAt(event);
  const aspect = Number($("#aspect").value);
  let width = Math.abs(to.x - dragFrom.x);
  let height = Math.abs(to.y - dragFrom.y);
  if (aspect) {
    const roomX = to.x < dragFrom.x ? dragFrom.x : picture.bitmap.width - dragFrom.x;
    const roomY = to.y < dragFrom.y ? dragFrom.y : picture.bitmap.height - dragFrom.y;
    width = Math.min(Math.max(width, height * aspect), roomX, roomY * aspect);
    height = width / aspect;
  }
  const x = Math.floor(to.x < dragFrom.x ? dragFrom.x - width : dragFrom.x);
  const y = Math.floor(to.y < dragFrom.y ? dragFrom.y - height : dragFrom.y);
  picture.crop = width < 8 || height < 8 ? null
    : { x, y, width: Math.round(width), height: Math.round(height) };
  draw();
});
canvas.addEventListener("pointerup", () => { dragFrom = null; });

$("#whole").addEventListener("click", () => { if (picture) { picture.crop = null; draw(); } });
$("#nothing").addEventListener("click", () => { picture = null; $("#file").value = ""; draw(); });
$("#file").addEventListener("change", (event) => { if (event.target.files[0]) take(event.target.files[0]); });
const drop = $("#drop");
for (const name of ["dragenter", "dragover"]) {
  drop.addEventListener(name, (event) => { event.preventDefault(); drop.classList.add("over"); });
}
for (const name of ["dragleave", "drop"]) drop.addEventListener(name, () => drop.classList.remove("over"));
drop.addEventListener("drop", (event) => {
  event.preventDefault();
  if (event.dataTransfer.files[0]) take(event.dataTransfer.files[0]);
});
document.addEventListener("paste", (event) => {
  const file = [...event.clipboardData.files].find((one) => one.type.startsWith("image/"));
  if (file) take(file);
});

async function upload() {
  const { file, bitmap, crop } = picture;
  if (!crop) return file;
  const part = new OffscreenCanvas(crop.width, crop.height);
  part.getContext("2d").drawImage(bitmap, crop.x, crop.y, crop.width, crop.height, 0, 0, crop.width, crop.height);
  return part.convertToBlob({ type: "image/png" });
}

const NUMBERS = ["scale", "steps", "guidance_scale", "width", "height", "seed"];

$("#job").addEventListener("submit", async (event) => {
  event.preventDefault();
  const form = event.target;
  const submit = form.querySelector(".main");
  submit.disabled = true;
  say("sending …");
  try {
    const params = {};
    for (const [name, value] of new FormData(form)) {
      const field = form.elements[name];
      if (["kind", "model"].includes(name) || value === "" || field.closest("label")?.hidden) continue;
      params[name] = NUMBERS.includes(name) || (name === "denoise" && /^\d$/.test(value)) ? Number(value) : value;
    }
    const job = { kind: form.elements.kind.value, params };
    if (form.elements.model.value) job.model = form.elements.model.value;
    const body = new FormData();
    body.append("job", JSON.stringify(job));
    if (picture) body.append("image", await upload(), picture.file.name || "pasted.png");
    const made = await (await ask(`${API}/jobs`, { method: "POST", body })).json();
    put(made);
    say(`enqueued as ${made.id}`);
  } catch (error) {
    say(error.message);
  } finally {
    submit.disabled = false;
  }
});

// --- models and status ---------------------------------------------------------------------------------------------

let installed = [];

function fitForm() {
  const form = $("#job");
  const kind = form.elements.kind.value;
  for (const label of form.querySelectorAll("[data-for]")) label.hidden = !label.dataset.for.split(" ").includes(kind);
  const chosen = form.elements.model.value;
  const fitting = installed.filter((model) => model.complete && model.kinds.includes(kind));
  form.elements.model.replaceChildren(
    element("option", { value: "", textContent: "the usual one" }),
    ...fitting.map((model) => element("option", { value: model.id, textContent: model.id })),
  );
  if (fitting.some((model) => model.id === chosen)) form.elements.model.value = chosen;
}
$("#job").elements.kind.addEventListener("change", fitForm);

async function loadModels() {
  const { models, worker } = await get(`${API}/models`);
  installed = models;
  const kinds = [...new Set(models.filter((model) => model.complete).flatMap((model) => model.kinds))];
  const choice = $("#job").elements.kind;
  const chosen = choice.value;
  choice.replaceChildren(...kinds.map((kind) => element("option", { value: kind, textContent: kind.replaceAll("_", " ") })));
  choice.value = kinds.includes(chosen) ? chosen : kinds.includes("upscale") ? "upscale" : kinds[0] ?? "";
  fitForm();
  $("#models tbody").replaceChildren(...models.map((model) => element("tr", {},
    element("td", { textContent: model.id }),
    element("td", { textContent: model.complete ? model.kinds.join(", ") : model.problem ?? "incomplete", className: model.complete ? "" : "failed" }),
    element("td", { textContent: bytes(model.bytes) }),
    element("td", { textContent: model.loaded ? bytes(model.loaded_bytes) : "–" }),
    element("td", {}, model.loaded ? button("Unload", async () => {
      await post(`${API}/models/${encodeURIComponent(model.id)}/unload`);
      await loadModels();
    }) : null),
  )));
  return worker;
}

async function loadStatus() {
  const worker = await loadModels();
  const about = await (await ask("/", { headers: { Accept: "application/json" } })).json();
  const facts = {
    Version: about.version,
    State: about.status,
    "Up since": clock(Date.now() - about.uptime_seconds * 1000),
    Worker: `${worker.state}${worker.pid ? `, process ${worker.pid}, ${bytes(worker.rss_bytes)}` : ""}`,
    Device: worker.device ? `${worker.device.name}: ${worker.device.model}. ${worker.device.reason}` : "not known until the first job",
    "Lost workers": worker.lost,
    Inbox: about.inbox ? JSON.stringify(about.inbox) : "off",
  };
  $("#facts").replaceChildren(...Object.entries(facts).flatMap(([name, value]) => [
    element("dt", { textContent: name }), element("dd", { textContent: String(value) }),
  ]));
  const log = await get("/api/dashboard/logs").catch(() => null);
  if (log) {
    const lines = (log.logs ?? log.lines ?? []).map((line) => (typeof line === "string" ? line : JSON.stringify(line)));
    $("#log").textContent = lines.join("\n");
    $("#log").scrollTop = $("#log").scrollHeight;
  }
  const settings = await get("/api/dashboard/settings").catch(() => null);
  if (settings) $("#settings").textContent = JSON.stringify(settings, null, 2);
}

// --- begin -------------------------------------------------------------------------------------------------------

$("#door").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("atelier-token", event.target.elements.token.value.trim());
  location.reload();
});

async function begin() {
  await loadStatus().catch((error) => { $("#state").textContent = error.message; });
  await loadJobs().catch((error) => { $("#state").textContent = error.message; });
  refreshQueue();
  setInterval(() => { if (!document.hidden) loadStatus().catch(() => {}); }, 15_000);
  live();
}
begin();
