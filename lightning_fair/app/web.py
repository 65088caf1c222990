"""What the page brings to the browser: its looks, and how files are read and written there."""

from __future__ import annotations

from lightning_fair.app.session import LARGEST_FILE

DOWNLOAD = """(name, text) => {
    if (!name) return;
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], {type: "application/json"}));
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
}"""
FONTS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Liberation Sans", "sans-serif")
MONO = ("ui-monospace", "Consolas", "Liberation Mono", "monospace")
# Not Gradio's upload: that writes to the server's disk, and shows the file's name as HTML where it is too large.
CHOOSE = """async (...values) => {
    const input = document.createElement("input");
    input.type = "file";
    input.style.display = "none";
    document.body.append(input);
    const file = await new Promise((resolve) => {
        input.onchange = () => resolve(input.files[0]);
        input.oncancel = () => resolve(null);
        input.click();
    });
    input.remove();
    let text = null;
    if (file && file.size <= LARGEST_FILE) {
        try {
            text = new TextDecoder("utf-8", {fatal: true}).decode(await file.arrayBuffer());
        } catch {}
    }
    return [...values.slice(0, -2), text, file ? file.size : -1];
}""".replace("LARGEST_FILE", str(LARGEST_FILE))
CSS = """
.gradio-container { max-width: 1180px !important; margin: 0 auto !important; }
.notice { padding: .6rem .9rem; border-radius: 8px; border-left: 4px solid; overflow-wrap: anywhere; }
.notice.good { border-color: #009e73; background: #009e7318; }
.notice.bad { border-color: #d55e00; background: #d55e0018; }
.notice.warn { border-color: #e69f00; background: #e69f0020; }
.chart { width: 100%; height: auto; display: block; overflow: visible; }
.legend { display: flex; flex-wrap: wrap; gap: .25rem 1rem; font-size: .85rem; padding-left: 2.5rem; }
@media (max-width: 640px) { .chart { font-size: 16px; } .legend { padding-left: 0; gap: .25rem .8rem; } }
.legend i { display: inline-block; width: 1rem; height: .25rem; border-radius: 2px; margin-right: .4rem;
    vertical-align: middle; }
#message, #warning, #feedback-message { padding: 0 !important; }
#message .html-container, #warning .html-container, #feedback-message .html-container { padding: 0 !important; }
#batch textarea { font-size: 1.5rem; font-weight: 600; line-height: 1.5; }
/* The table's own menu would sort one page of it only; "Sort" sorts the whole. */
#counts .cell-menu-button { display: none; }
/* The number under the words, of every slider: where it has room beside them it would sit higher. */
.sliders .head label { flex-basis: 100%; }
.inputs .form, .inputs { flex-wrap: nowrap; }
.inputs label { display: flex; flex-direction: column; height: 100%; }
/* Without the arrows of number fields, the largest N fits a phone. */
.inputs input { margin-top: auto; padding: .5rem .3rem !important; appearance: textfield; }
.inputs input::-webkit-inner-spin-button { display: none; }
"""
