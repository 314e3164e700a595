"""What the words of ranks amount to; no process is started."""

import pickle

import pytest
import torch

from fastvideo.pipelines.pipeline_batch_info import Cancelled, Progress
from fastvideo.worker.executor import RemoteTraceback, WorkerError
from fastvideo.worker.tally import GRACE_SECONDS, Agreed, Died, Failed, Failure, Finished, Reported, Stack, Tally
from tests.worker.acting import OwnError


def failure(error: BaseException) -> Failure:
    """`error` as it arrives from a rank."""
    try:
        raise error
    except BaseException as caught:
        return pickle.loads(pickle.dumps(Failure.of(caught)))


def lost_peer() -> Failure:
    """What a rank raises whose peer is gone."""
    found = failure(RuntimeError("Connection closed by peer"))
    return Failure(**{**vars(found), "follows": True, "usable": False})


def blamed(tally: Tally, now: float) -> WorkerError:
    """The error that the tally raises."""
    with pytest.raises(WorkerError) as caught:
        tally.check(now)
    return caught.value


@pytest.fixture
def tally() -> Tally:
    """Of two ranks that began at 0 and are stuck after 8 s."""
    return Tally(world=2, timeout=8.0, moved=0.0)


def test_done_when_all_are(tally: Tally) -> None:
    tally.add(Finished(1), 1)
    tally.check(1)
    assert not tally.finished
    tally.add(Finished(0, "video"), 2)
    assert tally.finished
    assert tally.values[0] == "video"


@pytest.mark.parametrize("error", [ValueError("a\nb"), FloatingPointError("x"), Cancelled("y"), KeyError("z")])
def test_an_error_of_all_is_that_error(tally: Tally, error: Exception) -> None:
    tally.add(Failed(1, failure(error)), 1)
    tally.check(1)
    tally.add(Failed(0, failure(error)), 3)
    with pytest.raises(Agreed) as caught:
        tally.check(3)
    raised = caught.value.error
    assert (type(raised), str(raised)) == (type(error), str(error))
    assert isinstance(raised.__cause__, RemoteTraceback)
    assert "raise error" in str(raised.__cause__)


def test_an_error_of_one_is_its_own_after_the_grace(tally: Tally) -> None:
    tally.add(Reported(Progress("denoising", 2, 50, None)), 1)
    tally.add(Failed(1, failure(ValueError("bad\nworse"))), 2)
    tally.check(2 + GRACE_SECONDS - 0.1)
    error = blamed(tally, 2 + GRACE_SECONDS)
    assert str(error) == "rank 1 of 2 raised ValueError during denoising, 2 of 50 done: bad"
    assert (error.rank, "worse" in error.traceback) == (1, True)


@pytest.mark.parametrize("other", [Finished(0), Failed(0, failure(ValueError("b"))), Failed(0, failure(KeyError("a")))])
def test_an_error_that_the_others_do_not_share_needs_no_grace(tally: Tally, other: Finished | Failed) -> None:
    tally.add(Failed(1, failure(ValueError("a"))), 1)
    tally.add(other, 1)
    assert blamed(tally, 1).rank == 1


def test_who_waits_for_another_is_not_to_blame(tally: Tally) -> None:
    tally.add(Failed(0, lost_peer()), 1)
    tally.add(Failed(1, failure(ValueError("a"))), 2)
    assert blamed(tally, 2).rank == 1


def test_all_that_lost_each_other_cannot_go_on(tally: Tally) -> None:
    for rank in range(2):
        tally.add(Failed(rank, lost_peer()), 1)
    assert blamed(tally, 1).rank == 0


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
    ],
)
def test_memory_that_ran_out_is_said_at_once(tally: Tally, error: Exception) -> None:
    tally.add(Failed(1, failure(error)), 1)
    said = str(blamed(tally, 1))
    assert said.startswith("rank 1 of 2 ran out of memory: ")
    assert said.endswith("; use a smaller size, a lower precision, or more devices")


def test_an_error_that_cannot_be_carried_is_told_in_text(tally: Tally) -> None:
    for rank in range(2):
        tally.add(Failed(rank, failure(OwnError(1, 2))), 1)
    assert str(blamed(tally, 1)) == "rank 0 of 2 raised tests.worker.acting.OwnError: 1 and 2"


def test_a_death_comes_first(tally: Tally) -> None:
    tally.add(Failed(0, lost_peer()), 1)
    tally.add(Died(1, "was killed by SIGKILL", "perhaps", "stack"), 1)
    error = blamed(tally, 1)
    assert (str(error), error.rank) == ("rank 1 of 2 was killed by SIGKILL: perhaps", 1)
    assert error.traceback == "stack"


def test_what_a_rank_raised_before_it_died_is_kept(tally: Tally) -> None:
    tally.add(Failed(1, failure(ValueError("told you"))), 1)
    tally.add(Died(1, "ended with exit code 1"), 1)
    assert "told you" in blamed(tally, 1).traceback


class TestStuck:
    computing = Stack("File a, line 1", "f (a:1)", "")
    waiting = Stack("File b, line 2", "wait (b:2)", "ulysses.all_to_all")

    def test_only_after_the_timeout(self, tally: Tally) -> None:
        assert not tally.stuck(8.0)
        assert tally.stuck(8.1)
        tally.add(Reported(Progress("denoising", 1, 2, None)), 8)
        assert not tally.stuck(16.0)
        tally.timeout = None
        assert not tally.stuck(1e6)

    @pytest.mark.parametrize(
        ("stacks", "rank", "message"),
        [
            ({0: waiting, 1: computing}, 1, "it is in f (a:1); rank 0 waits in ulysses.all_to_all"),
            ({0: computing, 1: waiting}, 0, "it is in f (a:1); rank 1 waits in ulysses.all_to_all"),
            ({0: waiting}, 1, "its process answers nothing; rank 0 waits in ulysses.all_to_all"),
            ({0: waiting, 1: waiting}, 0, "it is in wait (b:2); rank 1 waits in ulysses.all_to_all"),
            ({}, 0, "its process answers nothing"),
        ],
    )
    def test_who_is_to_blame(self, tally: Tally, stacks: dict[int, Stack], rank: int, message: str) -> None:
        error = tally.stuck_error(stacks)
        assert str(error) == f"rank {rank} of 2 made no progress for dist_timeout=8 s: {message}"
        assert (error.rank, error.traceback) == (rank, stacks[rank].text if rank in stacks else "")

    def test_the_quiet_one_when_another_gave_up_waiting(self, tally: Tally) -> None:
        tally.timeout = None
        tally.add(Failed(0, lost_peer()), 1)
        tally.check(1 + GRACE_SECONDS)
        assert not tally.stuck(1)
        assert tally.stuck(1 + GRACE_SECONDS)
        error = tally.stuck_error({0: self.computing, 1: self.computing})
        assert str(error) == "rank 1 of 2 keeps the others waiting: it is in f (a:1)"

    def test_not_while_it_is_known_who_raised(self, tally: Tally) -> None:
        tally.add(Failed(1, failure(ValueError("a"))), 7)
        assert not tally.stuck(9)


def test_the_error_survives_a_pickle() -> None:
    error = pickle.loads(pickle.dumps(WorkerError(3, "rank 3 died", "a stack")))
    assert (error.rank, str(error), error.traceback, str(error.__cause__)) == (3, "rank 3 died", "a stack", "\na stack")
