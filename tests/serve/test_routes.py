import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

HISTORY = ["Toy Story (1995)", "Babe (1995)"]


def error_of(answer: Any) -> dict[str, Any]:
    """The one shape of every error."""
    body = answer.json()
    assert list(body) == ["error"]
    assert sorted(body["error"]) == ["code", "field", "message", "nearest"]
    return body["error"]


def test_recommend_gives_the_best_titles_with_their_numbers(bench) -> None:
    client = bench().client
    answer = client.post("/v1/recommend", json={"history": HISTORY, "k": 2})
    assert answer.status_code == 200
    assert answer.json()["run"] == "one"
    assert answer.json()["recommendations"] == [
        {"rank": 1, "title": "Toy Story (1995)", "item_id": 1, "source_id": "s1",
         "score": -1.0, "log_prob": -1.0},
        {"rank": 2, "title": "GoldenEye (1995)", "item_id": 2, "source_id": "s2",
         "score": -2.0, "log_prob": -2.0},
    ]  # fmt: skip


def test_every_setting_of_a_request_reaches_the_recommender(bench) -> None:
    made = bench()
    body = {
        "history": HISTORY, "k": 3, "exclude_history": True,
        "only": ["Babe (1995)", "GoldenEye (1995)", "Twelve Monkeys (1995)"],
        "block": ["GoldenEye (1995)"],
    }  # fmt: skip
    answer = made.client.post("/v1/recommend", json=body)
    assert [one["title"] for one in answer.json()["recommendations"]] == ["Twelve Monkeys (1995)"]
    (request,) = made.recommender.batches[0]
    assert (request.history, request.k, request.exclude_history) == (HISTORY, 3, True)


def test_an_unknown_title_is_refused_with_its_place_and_the_nearest_titles(bench) -> None:
    answer = bench().client.post("/v1/recommend", json={"history": [HISTORY[0], "Toy Stori"]})
    error = error_of(answer)
    assert answer.status_code == 422
    assert (error["code"], error["field"]) == ("unknown_title", "history[1]")
    assert error["nearest"] == ["Toy Story (1995)"]
    assert "Stori" not in error["message"]  # what was asked for stays out of messages and logs


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"history": []}, "history"),
        ({"history": HISTORY, "k": 0}, "k"),
        ({"history": HISTORY, "k": 101}, "k"),
        ({"history": HISTORY, "k": "3"}, "k"),
        ({"history": HISTORY, "K": 3}, "K"),
        ({"history": ["Babe (1995)", None]}, "history[1]"),
        ({"history": ["Babe (1995)", 1.5]}, "history[1]"),
        ({"history": ["Babe (1995)", True]}, "history[1]"),
        ({"history": ["Babe (1995)"] * 201}, "history"),
        ({"history": HISTORY, "beam_width": 20}, "beam_width"),  # of an LLM run only
        ({"history": HISTORY, "temperature": 2}, "temperature"),
        ({"history": HISTORY, "mask": "causal"}, "mask"),
        ({"history": HISTORY, "temperature": 0}, "temperature"),
        ({"history": HISTORY, "block": ["No such title"]}, "block[0]"),
        ({"history": HISTORY, "only": [99]}, "only[0]"),
        ({"history": {"a": 1}}, "history"),
        ({}, "history"),
        ([], "body"),
        (None, "body"),
    ],
)
def test_a_wrong_field_is_named(bench, body: Any, field: str) -> None:
    answer = bench().client.post("/v1/recommend", json=body)
    assert (answer.status_code, error_of(answer)["field"]) == (422, field)


@pytest.mark.parametrize(
    ("path", "status"),
    [("/v1/nothing", 404), ("/page/../app.py", 404), ("/page/%2e%2e%2fapp.py", 404)],
)
def test_a_path_that_is_not_there_has_the_same_shape(bench, path: str, status: int) -> None:
    answer = bench().client.get(path)
    assert answer.status_code == status
    error_of(answer)


def test_a_lone_surrogate_and_a_null_character_are_no_fault_of_the_server(bench) -> None:
    client = bench().client
    for text in ('"\\ud800"', '"\\u0000"'):
        answer = client.post(
            "/v1/recommend", content=f'{{"history": [{text}]}}',
            headers={"Content-Type": "application/json"},
        )  # fmt: skip
        assert (answer.status_code, error_of(answer)["field"]) == (422, "history[0]")


def test_score_gives_the_candidates_best_first(bench) -> None:
    body = {"history": HISTORY, "titles": ["Seven (1995)", "Babe (1995)"]}
    answer = bench().client.post("/v1/score", json=body)
    assert [one["title"] for one in answer.json()["scores"]] == body["titles"]


def test_why_is_refused_of_a_run_without_a_trie(bench) -> None:
    answer = bench().client.post("/v1/why", json={"history": HISTORY, "title": "Babe (1995)"})
    assert (answer.status_code, error_of(answer)["field"]) == (422, "run")


def test_items_are_found_by_the_beginning_of_their_title(bench) -> None:
    answer = bench().client.get("/v1/items", params={"query": "toy"})
    assert answer.json()["items"] == [
        {"item_id": 1, "title": "Toy Story (1995)", "source_id": "s1"}
    ]


def test_runs_are_chosen_by_name_and_the_first_is_the_default(bench) -> None:
    made = bench(runs=("first", "second"))
    runs = made.client.get("/v1/runs").json()["runs"]
    assert [(run["name"], run["is_default"]) for run in runs] == [
        ("first", True), ("second", False),
    ]  # fmt: skip
    assert made.client.post("/v1/recommend", json={"history": HISTORY}).json()["run"] == "first"
    body = {"history": HISTORY, "run": "second"}
    assert made.client.post("/v1/recommend", json=body).json()["run"] == "second"
    body = {"history": HISTORY, "run": "../second"}
    answer = made.client.post("/v1/recommend", json=body)
    assert (answer.status_code, error_of(answer)["field"]) == (404, "run")


def test_a_run_shows_settings_and_numbers_and_no_path_of_the_machine(bench) -> None:
    made = bench("cache_root=/somewhere/secret", "data.train_file=/somewhere/secret/train.csv")
    answer = made.client.get("/v1/run")
    assert answer.json()["metrics"] == {"test": {"HR@10": 0.5}}
    assert answer.json()["settings"]["decode"]["beam_width"] == made.config.decode.beam_width
    assert answer.json()["settings"]["data"]["train_file"] == "train.csv"
    assert "secret" not in answer.text


def test_users_come_with_the_true_next_title_and_its_rank(bench) -> None:
    answer = bench().client.get("/v1/users")
    assert answer.json() == {
        "run": "one", "total": 1,
        "users": [{
            "user": "u7", "history": ["Toy Story (1995)", "GoldenEye (1995)"],
            "target": "Twelve Monkeys (1995)", "target_rank": 4,
        }],
    }  # fmt: skip


def test_ten_at_once_are_decoded_together_and_answered_as_alone(bench) -> None:
    made = bench("task.serve.max_wait_ms=200")
    bodies = [{"history": HISTORY, "k": k, "exclude_history": k % 2 == 0} for k in range(1, 11)]

    def ask(body: dict[str, Any]) -> list[str]:
        answer = made.client.post("/v1/recommend", json=body).json()
        return [one["title"] for one in answer["recommendations"]]

    with ThreadPoolExecutor(10) as pool:
        together = list(pool.map(ask, bodies))
    assert max(map(len, made.recommender.batches)) > 1
    assert together == [ask(body) for body in bodies]


def test_what_the_model_refuses_of_one_request_leaves_the_others_alone(bench) -> None:
    made = bench("task.serve.max_wait_ms=200")
    bodies = [{"history": HISTORY}, {"history": ["Seven (1995)"]}, {"history": HISTORY}]
    with ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(lambda b: made.client.post("/v1/recommend", json=b), bodies))
    assert [answer.status_code for answer in answers] == [200, 422, 200]
    assert error_of(answers[1])["message"] == "Seven is one too many"


def test_a_full_queue_is_429_and_a_late_answer_504(bench) -> None:
    made = bench("task.serve.max_queue=1", "task.serve.request_timeout_seconds=0.5")
    begun, may = threading.Event(), threading.Event()
    made.recommender.before = lambda: (begun.set(), may.wait(10))

    def ask(_: int) -> Any:
        return made.client.post("/v1/recommend", json={"history": HISTORY})

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(ask, 0)
        assert begun.wait(10)
        second = pool.submit(ask, 1)
        while made.service.batcher.num_waiting == 0:
            pass
        full = ask(2)
        late = first.result(), second.result()
        may.set()
    assert (full.status_code, error_of(full)["code"]) == (429, "queue_full")
    assert int(full.headers["Retry-After"]) >= 1
    assert [answer.status_code for answer in late] == [504, 504]
    made.service.batcher.close()
    assert len(made.recommender.batches) == 1  # the second was never computed


def test_a_fault_of_the_model_is_500_without_its_words_and_the_next_request_is_answered(
    bench, capsys
) -> None:
    made = bench()

    def fail() -> None:
        raise RuntimeError("weights of /somewhere")

    made.recommender.before = fail
    answer = made.client.post("/v1/recommend", json={"history": HISTORY})
    assert (answer.status_code, error_of(answer)["code"]) == (500, "internal")
    assert "somewhere" not in answer.text
    assert "RuntimeError: weights of /somewhere" in capsys.readouterr().err
    made.recommender.before = lambda: None
    assert made.client.post("/v1/recommend", json={"history": HISTORY}).status_code == 200


def test_nothing_is_ready_while_runs_are_loaded_or_the_server_ends(bench) -> None:
    made = bench()
    assert made.client.get("/readyz").status_code == 200
    made.app.is_ending = True
    answer = made.client.get("/readyz")
    assert (answer.status_code, error_of(answer)["code"]) == (503, "ending")
    assert made.client.get("/healthz").status_code == 200
    made.app.is_ending, made.fleet.runs = False, {}
    answer = made.client.get("/readyz")
    assert (answer.status_code, error_of(answer)["code"]) == (503, "not_ready")
    assert made.client.post("/v1/recommend", json={"history": HISTORY}).status_code == 503


def test_prometheus_reads_requests_and_batches(bench) -> None:
    client = bench().client
    client.post("/v1/recommend", json={"history": HISTORY})
    client.post("/v1/recommend", json={"history": []})
    lines = client.get("/metrics").text.splitlines()
    assert 'hatllm_requests_total{route="/v1/recommend",status="200"} 1.0' in lines
    assert 'hatllm_requests_total{route="/v1/recommend",status="422"} 1.0' in lines
    assert "hatllm_batch_size_count 1.0" in lines
    assert "hatllm_ready 1.0" in lines


def test_the_description_states_the_limits_of_this_server(bench) -> None:
    described = bench("task.serve.max_k=7", "task.serve.max_history=9").client.get("/openapi.json")
    fields = described.json()["components"]["schemas"]["RecommendRequest"]["properties"]
    assert (fields["k"]["maximum"], fields["history"]["maxItems"]) == (7, 9)
    answer = bench("task.serve.max_k=7").client.post(
        "/v1/recommend", json={"history": HISTORY, "k": 8}
    )
    assert (answer.status_code, error_of(answer)["field"]) == (422, "k")
