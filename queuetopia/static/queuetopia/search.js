// Completes the names of queues in the search field of the lists. Without this script one types them.
document.addEventListener("DOMContentLoaded", () => {
    "use strict";
    const field = document.getElementById("searchbar");
    const isOurs = document.body.matches(".model-job.change-list, .model-queue.change-list");
    if (!field || !isOurs) return;
    const names = document.createElement("datalist");
    names.id = "queuetopia-names";
    field.after(names);
    field.setAttribute("list", names.id);
    // The admin's own label is a picture.
    field.setAttribute("aria-label", field.form?.querySelector("input[type=submit]")?.value ?? "");
    let soon;

    const complete = async () => {
        const address = new URL("../queue/names/", window.location.href);
        address.searchParams.set("q", field.value);
        try {
            const answer = await fetch(address, {credentials: "same-origin", redirect: "error"});
            if (!answer.ok) return;
            const found = (await answer.json()).names.map((name) => Object.assign(document.createElement("option"), {value: name}));
            names.replaceChildren(...found);
        } catch {
            names.replaceChildren(); // it is a help, no more
        }
    };

    field.addEventListener("input", () => {
        clearTimeout(soon);
        if (field.value.length > 1) soon = setTimeout(complete, 250);
    });
});
