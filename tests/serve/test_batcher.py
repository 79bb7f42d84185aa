import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError

import pytest

from hatllm.serve.batcher import Batcher
from hatllm.serve.refusal import Refusal

SOON = 5.0  # seconds


class Doubling:
    """Answers with twice the number, once it may."""

    def __init__(self) -> None:
        self.may = threading.Event()
        self.begun = threading.Event()
        self.batches: list[list[int]] = []

    def __call__(self, numbers: Sequence[int]) -> list[int]:
        self.batches.append(list(numbers))
        self.begun.set()
        assert self.may.wait(SOON)
        if 13 in numbers:
            raise ValueError("13")
        return [2 * number for number in numbers]


@pytest.fixture
def double() -> Doubling:
    return Doubling()


@pytest.fixture
def batcher(double: Doubling) -> Iterator[Batcher]:
    made = Batcher(4, 0.0, 6, lambda size, seconds: None)
    yield made
    double.may.set()
    made.close()


def later() -> float:
    return time.monotonic() + SOON


def hold(batcher: Batcher, double: Doubling) -> None:
    """Keep the thread busy with one request, so that others wait."""
    batcher.submit(double, 0, later())
    assert double.begun.wait(SOON)


def test_requests_that_wait_are_answered_together_and_each_gets_its_own_answer(
    batcher: Batcher, double: Doubling
) -> None:
    hold(batcher, double)
    jobs = [batcher.submit(double, number, later()) for number in range(1, 7)]
    double.may.set()
    assert [job.future.result(SOON) for job in jobs] == [2, 4, 6, 8, 10, 12]
    assert double.batches == [[0], [1, 2, 3, 4], [5, 6]]
    assert [job.batch_size for job in jobs] == [4, 4, 4, 4, 2, 2]


def test_a_request_that_cannot_be_answered_refuses_itself_alone(
    batcher: Batcher, double: Doubling
) -> None:
    hold(batcher, double)
    jobs = [batcher.submit(double, number, later()) for number in (1, 13, 3)]
    double.may.set()
    assert (jobs[0].future.result(SOON), jobs[2].future.result(SOON)) == (2, 6)
    with pytest.raises(ValueError, match="13"):
        jobs[1].future.result(SOON)


def test_requests_of_another_function_wait_for_a_call_of_their_own(
    batcher: Batcher, double: Doubling
) -> None:
    other = Doubling()
    other.may.set()
    hold(batcher, double)
    first, second, third = (
        batcher.submit(answer, number, later())
        for answer, number in ((double, 1), (other, 2), (double, 3))
    )
    double.may.set()
    assert [job.future.result(SOON) for job in (first, second, third)] == [2, 4, 6]
    assert (double.batches, other.batches) == ([[0], [1, 3]], [[2]])


def test_a_full_queue_refuses_with_429_and_says_when_to_come_again(
    batcher: Batcher, double: Doubling
) -> None:
    hold(batcher, double)
    for number in range(6):
        batcher.submit(double, number, later())
    with pytest.raises(Refusal) as caught:
        batcher.submit(double, 6, later())
    assert (caught.value.status, caught.value.headers()) == (429, {"Retry-After": "1"})


def test_a_request_whose_time_is_over_is_not_computed(batcher: Batcher, double: Doubling) -> None:
    hold(batcher, double)
    job = batcher.submit(double, 5, time.monotonic() - 1)
    double.may.set()
    with pytest.raises(CancelledError):
        job.future.result(SOON)
    batcher.close()
    assert double.batches == [[0]]


def test_a_request_that_was_withdrawn_is_not_computed(batcher: Batcher, double: Doubling) -> None:
    hold(batcher, double)
    job = batcher.submit(double, 5, later())
    assert job.future.cancel()
    double.may.set()
    batcher.close()
    assert double.batches == [[0]]


def test_the_first_request_waits_for_others_as_long_as_it_is_told(double: Doubling) -> None:
    double.may.set()
    patient = Batcher(2, SOON, 6, lambda size, seconds: None)
    jobs = [patient.submit(double, number, later()) for number in (1, 2)]
    assert [job.future.result(SOON) for job in jobs] == [2, 4]
    patient.close()
    assert double.batches == [[1, 2]]


def test_closing_answers_what_waits_and_refuses_what_comes(
    batcher: Batcher, double: Doubling
) -> None:
    hold(batcher, double)
    job = batcher.submit(double, 4, later())
    double.may.set()
    batcher.close()
    assert job.future.result(0) == 8
    with pytest.raises(Refusal, match="ending"):
        batcher.submit(double, 1, later())
