// Renews the overview while it is visible: one request at a time, none while the page is hidden. Without this
// script the page stays as it is, and its link reloads it.
(() => {
    "use strict";
    const live = document.getElementById("queuetopia-live");
    const said = document.getElementById("queuetopia-said");
    if (!live || !said) return;
    const every = Number(live.dataset.every) * 1000;
    let last = Date.now();
    let isAsking = false;

    const say = (text) => {
        if (said.textContent !== text) said.textContent = text;
    };

    const renew = async () => {
        // Who reads with the keyboard must not lose the place.
        if (document.hidden || isAsking || live.contains(document.activeElement)) return;
        isAsking = true;
        last = Date.now();
        try {
            const answer = await fetch(live.dataset.address, {credentials: "same-origin", redirect: "error"});
            if (!answer.ok) throw new Error(`status ${answer.status}`);
            const open = [...live.querySelectorAll("details[open]")].map((element) => element.id);
            live.innerHTML = await answer.text();
            open.forEach((id) => document.getElementById(id)?.setAttribute("open", ""));
            say(live.querySelector("[data-summary]")?.dataset.summary ?? "");
        } catch {
            say(live.dataset.stale);
        } finally {
            isAsking = false;
        }
    };

    setInterval(renew, every);
    document.addEventListener("visibilitychange", () => {
        if (!document.hidden && Date.now() - last >= every) renew();
    });
})();
