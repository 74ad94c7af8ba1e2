"""The fixtures of the browser tests see what they are there to see."""


def test_what_goes_wrong_in_the_browser_is_seen(page, live_server, problems):
    page.goto(f"{live_server.url}/admin/")
    assert problems == []
    page.evaluate("fetch('http://127.0.0.2:1/').catch(() => 0)")
    with page.expect_event("pageerror"):
        page.evaluate("setTimeout(() => { throw new Error('thrown') })")
    page.goto(f"{live_server.url}/nowhere")
    kinds = {text.partition(":")[0] for text in problems}
    assert kinds == {"request to another host", "error on the page", "console"}
    assert any("/nowhere" in text for text in problems)
    problems.clear()


def test_an_admin_is_logged_in(admin_page, live_server):
    admin_page.goto(f"{live_server.url}/admin/")
    assert "Site administration" in admin_page.title()


def test_a_screenshot_is_taken(page, live_server, screenshot, tmp_path, monkeypatch):
    monkeypatch.delenv("QUEUETOPIA_SCREENSHOTS", raising=False)
    page.goto(f"{live_server.url}/admin/")
    screenshot("login")
    assert (tmp_path / "login.png").read_bytes().startswith(b"\x89PNG")


def test_a_barrier_is_found(page, live_server, barriers):
    page.goto(f"{live_server.url}/admin/")
    page.evaluate("document.body.append(document.createElement('button'))")
    assert "button-name: <button></button>" in barriers()
