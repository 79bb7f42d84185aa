import asyncio
import json
from typing import Any

import pytest

from hatllm.serve.listening import token_of

TOKEN = "a long random text"
HISTORY = ["Toy Story (1995)"]
JSON = {"Content-Type": "application/json"}


def recommend(made: Any, **headers: str) -> Any:
    return made.client.post("/v1/recommend", json={"history": HISTORY}, headers=headers)


@pytest.mark.parametrize("given", [None, "Bearer", "Bearer wrong", f"Basic {TOKEN}", "Bearer ä"])
def test_without_the_token_nothing_is_answered(bench, given: str | None) -> None:
    made = bench(token=TOKEN)
    headers = {} if given is None else {"Authorization": given.encode()}
    answer = made.client.post("/v1/recommend", json={"history": HISTORY}, headers=headers)
    assert (answer.status_code, answer.headers["WWW-Authenticate"]) == (401, "Bearer")
    assert answer.json()["error"]["field"] == "Authorization"
    for path in ("/v1/runs", "/v1/items?query=a", "/metrics", "/openapi.json", "/v1/nothing"):
        assert made.client.get(path).status_code == 401
    assert made.recommender.batches == []


def test_with_the_token_all_is_answered_and_the_log_never_holds_it(bench, capsys) -> None:
    made = bench(token=TOKEN)
    assert recommend(made, Authorization=f"Bearer {TOKEN}").status_code == 200
    assert recommend(made, Authorization=f"Bearer {TOKEN}x").status_code == 401
    assert TOKEN not in capsys.readouterr().err


def test_probes_and_the_page_need_no_token(bench) -> None:
    client = bench(token=TOKEN).client
    for path in ("/", "/page/page.js", "/page/page.css", "/healthz", "/readyz"):
        assert client.get(path).status_code == 200


def test_a_body_that_is_too_large_is_refused_whether_it_says_so_or_not(bench) -> None:
    made = bench("task.serve.max_body_bytes=1000")
    body = json.dumps({"history": ["a" * 2000]}).encode()
    said = made.client.post("/v1/recommend", content=body, headers=JSON)
    chunks = (body[start : start + 100] for start in range(0, len(body), 100))
    unsaid = made.client.post("/v1/recommend", content=chunks, headers=JSON)
    for answer in (said, unsaid):
        assert (answer.status_code, answer.json()["error"]["field"]) == (413, "body")


@pytest.mark.parametrize(
    "body", ["[" * 100_000, '{"history":' * 20_000, '{"history": ' + "[" * 50_000 + "]" * 50_000]
)
def test_deep_nesting_is_refused_and_the_server_lives(bench, body: str) -> None:
    made = bench()
    answer = made.client.post("/v1/recommend", content=body.encode(), headers=JSON)
    assert answer.status_code in (400, 422)
    assert answer.json()["error"]["message"]
    assert recommend(made).status_code == 200


@pytest.mark.parametrize("body", [b"", b"{", b"\xff\xfe", b'{"history": NaN}', b"nul"])
def test_what_is_no_json_is_refused(bench, body: bytes) -> None:
    answer = bench().client.post("/v1/recommend", content=body, headers=JSON)
    assert answer.status_code in (400, 422)
    assert answer.json()["error"]["message"]


def test_a_body_that_comes_too_slowly_is_refused(bench) -> None:
    made = bench("task.serve.request_timeout_seconds=0.05")
    sent: list[Any] = []

    async def never() -> Any:
        await asyncio.sleep(10)

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"host", b"127.0.0.1:8000"), (b"content-length", b"10")]
    scope = {"type": "http", "method": "POST", "path": "/v1/recommend", "headers": headers}
    asyncio.run(made.app(scope, never, send))
    assert sent[0]["status"] == 408


def test_only_names_of_this_machine_are_answered_where_nobody_else_can_call(bench) -> None:
    made = bench()
    for host in ("127.0.0.1:8000", "localhost", "[::1]:8000", "[::1]"):
        assert recommend(made, Host=host).status_code == 200
    for host in ("evil.example", "evil.example:8000", "localhost.evil.example", ""):
        assert recommend(made, Host=host).status_code == 421


def test_other_origins_may_call_where_they_are_named_and_nowhere_else(bench) -> None:
    origin = "https://example.org"
    closed = recommend(bench(), Origin=origin)
    assert "access-control-allow-origin" not in closed.headers
    made = bench(f"task.serve.cors_origins=[{origin}]", token=TOKEN)
    answer = recommend(made, Origin=origin, Authorization=f"Bearer {TOKEN}")
    assert answer.headers["access-control-allow-origin"] == origin
    asked = {"Origin": origin, "Access-Control-Request-Method": "POST"}
    assert made.client.options("/v1/recommend", headers=asked).status_code == 200
    other = recommend(made, Origin="https://evil.example", Authorization=f"Bearer {TOKEN}")
    assert "access-control-allow-origin" not in other.headers


def test_the_log_is_one_json_line_a_request_and_holds_titles_only_where_asked_for(
    bench, capsys
) -> None:
    recommend(bench())
    (line,) = capsys.readouterr().err.splitlines()
    told = json.loads(line)
    assert (told["route"], told["status"], told["run"], told["k"]) == (
        "/v1/recommend", 200, "one", 10,
    )  # fmt: skip
    assert (told["history"], told["batch"]) == (1, 1)
    assert "Toy Story" not in line
    recommend(bench("task.serve.log_titles=true"))
    assert json.loads(capsys.readouterr().err)["history_titles"] == HISTORY


def test_an_address_for_others_needs_a_token(compose_config, monkeypatch) -> None:
    words = ["task=serve", "task.run_folder=x", "task.serve.host=0.0.0.0"]
    config = compose_config(*words).task.serve
    monkeypatch.delenv("HATLLM_TOKEN", raising=False)
    with pytest.raises(ValueError, match=r"task\.serve\.host='0\.0\.0\.0'.*HATLLM_TOKEN"):
        token_of(config)
    monkeypatch.setenv("HATLLM_TOKEN", TOKEN)
    assert token_of(config) == TOKEN


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("port=70000", "task.serve.port=70000 must be between 0 and 65535"),
        ("max_batch=0", "task.serve.max_batch=0 must be at least 1"),
        ("max_k=101", "task.serve.max_k=101 must be between 1 and 100"),
        ("request_timeout_seconds=0", "must be above 0"),
        ("cors_origins=['*']", "must hold origins such as https://example.org"),
    ],
)
def test_a_setting_that_does_not_fit_is_refused(compose_config, word: str, message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("*", r"\*")):
        compose_config("task=serve", "task.run_folder=x", f"task.serve.{word}")


def test_serving_needs_one_run_or_a_list_of_them(compose_config) -> None:
    with pytest.raises(ValueError, match=r"task\.run_folder=None.*task=serve needs one of the two"):
        compose_config("task=serve")
