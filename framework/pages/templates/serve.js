// The page of `serve`: sends images, and shows the card of each exam, its report word by word.
const PAUSE_MS = 70, TRIES = 5; // between two words; requests to a full queue
const CHINESE = {
  "Research software, not for diagnosis.": "研究软件，不得用于诊断。",
  "A report is made by a model that invents and omits findings. It may not be used for a patient without a physician who reads the images.":
    "报告由模型生成，可能虚构或遗漏所见。未经医师阅片，不得用于患者。",
  "Model": "模型", "Language": "语言", "Trained on": "训练数据", "Model card": "模型说明",
  "Drop the views of one exam here, or choose them": "将一次检查的图像拖到此处，或选择文件",
  "Images are sent to this server only, and are not stored.": "图像仅发送到本服务器，不会保存。",
  "Reports": "报告", "generated": "生成的报告", "other reports of the beam": "束搜索的其他报告", "log-probability of the report": "报告的对数概率",
  "nearest training exams": "最相近的训练检查", "The model is writing …": "正在生成……", "Done.": "完成。",
  "The server is busy; trying again …": "服务器繁忙，正在重试……", "The images are too large.": "图像过大。",
  "The server does not answer.": "服务器没有响应。",
  "The more a word is shaded, the less sure the model is of it. Point at a word, tap it, or move by the arrow keys: the views show where the decoder attends to more than equally while it writes the word.":
    "词的底色越深，模型越不确定。指向、点按词语，或用方向键移动：图像上会显示模型写该词时关注的位置。",
};
const at = id => document.getElementById(id);
const drop = at("drop"), images = at("images"), model = at("model"), language = at("language");
const wait = ms => new Promise(resolve => setTimeout(resolve, ms));

const translate = scope => {
  for (const element of scope.querySelectorAll("h2, h3, p, span, strong, label, summary")) {
    const text = element.dataset.english || element.textContent.trim();
    if (element.childElementCount || !CHINESE[text]) continue;
    element.dataset.english = text;
    element.textContent = language.value === "zh" ? CHINESE[text] : text;
    if (language.value === "zh") element.lang = "zh";
    else element.removeAttribute("lang");
  }
};
const say = (id, text) => {
  const line = at(id);
  delete line.dataset.english;
  line.textContent = text;
  translate(line.parentElement);
};
const reveal = (report, {words, show, hide}) => {
  if (!words.length || matchMedia("(prefers-reduced-motion: reduce)").matches) return;
  let next = 0;
  report.classList.add("writing");
  const finish = () => {
    if (!report.classList.contains("writing")) return;
    clearInterval(timer);
    report.classList.remove("writing");
    hide();
  };
  const timer = setInterval(() => {
    if (next === words.length) return finish();
    words[next].classList.add("written");
    show(words[next++]);
  }, PAUSE_MS);
  for (const event of ["pointerdown", "mousemove", "focusin"]) report.addEventListener(event, finish, {once: true});
};
const request = async files => {
  const form = new FormData();
  for (const file of files) form.append("images", file, file.name);
  for (let tried = 1; ; tried++) {
    const response = await fetch(`card?model=${encodeURIComponent(model.value)}`, {method: "POST", body: form});
    if (response.ok) return response.text();
    const problems = (await response.json()).errors;
    if (response.status !== 429 || tried === TRIES) throw new Error(problems.map(each => {
      const parts = [each.place, each.found].filter(Boolean).join(": ") + (each.expected ? `, expected ${each.expected}` : "");
      return `${parts}. ${each.hint} [${each.code}]`.replace(". .", ".").replace(".  [", ". [");
    }).join("\n"));
    say("status", "The server is busy; trying again …");
    await wait(1000 * response.headers.get("Retry-After"));
  }
};
const send = async files => {
  say("error", "");
  if (!files.length) return;
  if (files.reduce((sum, file) => sum + file.size, 0) > drop.dataset.bytes) return say("error", "The images are too large.");
  say("status", "The model is writing …");
  const card = document.createElement("template");
  try {
    card.innerHTML = await request(files);
  } catch (error) {
    say("status", "");
    return say("error", error instanceof TypeError ? "The server does not answer." : error.message);
  }
  const section = card.content.querySelector("section");
  at("exams").prepend(section);
  at("heading").hidden = at("help").hidden = false;
  translate(section);
  for (const report of section.querySelectorAll(".report")) reveal(report, showWords(report));
  say("status", "Done.");
};
images.addEventListener("change", () => {
  send([...images.files]);
  images.value = ""; // the same files can be chosen again
});
for (const event of ["dragover", "drop"]) window.addEventListener(event, happened => happened.preventDefault());
for (const event of ["dragenter", "dragover"]) drop.addEventListener(event, () => drop.classList.add("over"));
for (const event of ["dragleave", "drop"]) drop.addEventListener(event, () => drop.classList.remove("over"));
drop.addEventListener("drop", happened => send([...happened.dataTransfer.files]));
model.addEventListener("change", () => {
  for (const about of document.querySelectorAll("[data-model]")) about.hidden = about.dataset.model !== model.value;
});
language.addEventListener("change", () => translate(document));
