"""Asking a judge in batches: written down before they are sent, found again after a kill, collected item by item.

A batch outlives the process that sent it. So everything stands in the journal (`submissions.py`): the questions of a
batch before it is sent, its id when the provider has named it, each answer in a commit of its own. A run begins by
seeing to the batches that it finds there; a submission whose answer nobody heard is looked for at the provider's, and
its questions are sent again only when it is certain to be in no batch.
"""

from __future__ import annotations

import secrets
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from ..clients.base import BatchFault, BatchState, BatchTransport, Reply
from ..clients.batch_calls import BatchRefused, NotTaken, Torn
from ..clients.retry import MAX_TRIES, pause
from ..errors import BudgetExceeded, BuildError, InputError
from .batch_report import BatchReport
from .questions import KIND, Desk, Question, answered
from .submissions import Submission


CLOCKS = 3600.0  # seconds that the provider's clock may be behind this machine's
SETTLE = 60.0  # seconds after which a submission that arrived is in the provider's list
_PATIENCE = 10  # looks in a row at a batch that may fail, each after six tries


class BatchAsking:
    """One run over some questions.

    Args:
        single: asks one question by itself.
        poll: seconds between two looks.
        settle: seconds to wait before a submission that is not in the provider's list is taken to be lost; SETTLE.
    """

    def __init__(
        self,
        desk: Desk,
        transport: BatchTransport,
        *,
        single: Callable[[Question], None],
        poll: float,
        settle: float | None = None,
    ) -> None:
        if not poll > 0:
            raise InputError(f"`poll` is {poll}, expected seconds above 0.")
        self.desk, self.transport, self.journal = desk, transport, desk.journal
        self.single, self.poll, self.settle = single, poll, SETTLE if settle is None else settle
        self._measures: dict[str, tuple[int, float]] = {}
        self._rows: dict[str, str] = {}  # key -> the row, as an error names it
        self._wrong: dict[str, str] = {}  # key -> why it is not asked again
        self._tries: Counter[str] = Counter()  # times that a question came back without a reply
        self._faults: Counter[str] = Counter()
        self._first_seen: dict[str, float] = {}  # tag of a submission without an id -> monotonic seconds
        self._foreign: set[tuple[str, str]] = set()  # (tag, batch): looked into, and not that submission
        self._failures = self._deaf = 0

    def run(self, questions: Sequence[Question], note: str) -> None:
        """Ask until every question has its last answer.

        Raises:
            see [`tuna_trl.build.judging.ask_all`]; a request that is wrong is named when all others are done.
        """
        if not self._known(questions):
            self._ask_largest(questions)
        self.report = BatchReport(self.desk.judge.name, len(questions), note, show=self.desk.show_progress)
        with self.report:
            try:
                while self._step(questions):
                    pass
            except KeyboardInterrupt:
                if batches := self.journal.batches(lambda known: known.open_batches()):
                    self.report.note(
                        f"Stopped. Batches that were sent go on at the provider's ({', '.join(batches)}); run the "
                        "same command again to collect them."
                    )
                raise
        self._raise_wrong()

    def _known(self, questions: Sequence[Question]) -> bool:
        """Whether the judge was asked before, so that its requests are known to be good."""
        mine = self.journal.batches(lambda known: known.mine(self.desk.judge_id))
        return bool(mine) or answered(questions) > 0 or not any(self.desk.due(question) for question in questions)

    def _ask_largest(self, questions: Sequence[Question]) -> None:
        """Batches say what is wrong with a request when they end, a day later: the likeliest to be refused goes first,
        by itself."""
        question = max(questions, key=lambda question: self._measure(question)[0])
        self.single(question)
        if question.answers and question.answers[-1].verdict.status == "over_budget":
            question.answers.pop()  # in a batch it may fit

    def _step(self, questions: Sequence[Question]) -> bool:
        """Look at what is out, send what is due, wait if neither came to anything; False when all is done."""
        due = [question for question in questions if self.desk.look(question)]
        due = [question for question in due if not self._is_hopeless(self.desk.key(question))]
        mine = self.journal.batches(lambda known: known.mine(self.desk.judge_id))
        self.report.done(len(questions) - len(due))
        if not due:
            return False
        moved = [self._see_to(submission) for submission in mine]
        if any(moved):
            return True
        out = self.journal.batches(lambda known: known.all_awaited())
        free = [question for question in due if self.desk.key(question) not in out]
        if not (free and self._send(free, waiting=bool(out))):
            unnamed = any(submission.batch is None for submission in mine)
            time.sleep(min(self.poll, self.settle / 4) if unnamed else self.poll)
        return True

    def _is_hopeless(self, key: str) -> bool:
        return key in self._wrong or self._tries[key] >= MAX_TRIES

    def _measure(self, question: Question) -> tuple[int, float]:
        """Bytes of its next request in a batch, and USD that it may cost there."""
        key = self.desk.key(question)
        if key not in self._measures:
            request = self.desk.next(question)
            size, worst = self.transport.size(request), self.desk.worst(request, self.transport)
            if size > self.transport.max_bytes:
                raise InputError(
                    f"{question.where}: the request takes {size:,} bytes, and a batch holds "
                    f"{self.transport.max_bytes:,}. Shorten its prompt, or ask without batches."
                )
            self._measures[key] = (size, worst)
            self._rows[key] = question.where
        return self._measures[key]

    def _send(self, free: Sequence[Question], *, waiting: bool) -> bool:
        """Send one batch of the first of `free`, as large as limits and money allow; whether anything came of it."""
        chosen: dict[str, Question] = {}
        total = 0
        for question in free:
            size, _ = self._measure(question)
            if len(chosen) >= self.transport.max_requests or total + size > self.transport.max_bytes:
                break
            chosen[self.desk.key(question)] = question
            total += size
        tag = secrets.token_hex(8)
        worsts = {key: self._measures[key][1] for key in chosen}
        self.desk.budget.look()
        cap = self.desk.budget.cap
        submission, dear = self.journal.batches(
            lambda known: known.begin(tag, worsts, judge=self.desk.judge_id, cap=cap)
        )
        if submission is None:
            if not dear or waiting:  # others are asking for them, or money will come back
                return False
            self._over_budget([chosen[key] for key in dear])
            return True
        taken = self.journal.batches(lambda known: known.awaited(tag))
        self._submit(submission, {key: question for key, question in chosen.items() if key in taken})
        return True

    def _over_budget(self, dear: Sequence[Question]) -> None:
        least = min(self._measure(question)[1] for question in dear)
        budget = self.desk.budget
        why = (
            f"max_cost is {budget.max_cost:.2f} USD: {budget.spent:.4f} USD are spent, and the next request could "
            f"cost up to {least:.4f} USD in a batch."
        )
        if self.desk.stop_over_budget:
            raise BudgetExceeded(why)
        for question in dear:
            self.desk.give_up(question, why)

    def _submit(self, submission: Submission, questions: dict[str, Question]) -> None:
        requests = {key: self.desk.next(question) for key, question in questions.items()}
        try:
            state = self.transport.submit(requests, tag=submission.tag)
        except NotTaken as error:
            self._end(submission, "refused")
            self._fail(error)
            time.sleep(pause(self._failures - 1, None))
        except InputError:
            self._end(submission, "refused")
            raise
        except BuildError as error:  # it may be there: looked for before its questions are sent again
            self.report.note(f"It is not known whether a batch of {len(requests)} requests arrived: {error}")
            self._fail(error)
        else:
            self.journal.batches(lambda known: known.name(submission.tag, state.id))
            self._failures = 0
            self.report.change(f"batch {state.id} sent: {len(requests)} requests.")

    def _fail(self, error: BuildError) -> None:
        self._failures += 1
        if self._failures >= MAX_TRIES:
            raise error

    def _see_to(self, submission: Submission) -> bool:
        """Find, look at or collect one batch; whether its questions may be due again, or are answered."""
        if submission.batch is None:
            batch, waiting = self._find(submission)
            if batch is None:
                return not waiting and self._is_lost(submission)
            self.journal.batches(lambda known: known.name(submission.tag, batch))
            self.report.note(f"batch {batch}, sent before the last run ended, was found: {submission.size} requests.")
            return True
        try:
            state = self.transport.state(submission.batch)
        except InputError as error:
            raise self._unreadable(submission, error) from None
        except BuildError as error:
            self._deaf += 1
            if self._deaf > _PATIENCE:
                raise
            self.report.note(f"batch {submission.batch}: {error} Looking again.")
            return False
        self._deaf = 0
        self.report.state(state)
        if not state.ended:
            return False
        self._collect(submission, state)
        return True

    def _find(self, submission: Submission) -> tuple[str | None, bool]:
        """The batch that a submission without an id became, if it is there; whether there are some that may be it."""
        states = self.transport.list(since=submission.sent - CLOCKS)
        known = self.journal.batches(lambda known: known.known())
        states = [state for state in states if state.id not in known]
        if self.transport.keeps_tags:
            return next((state.id for state in states if state.tag == submission.tag), None), False
        awaited = self.journal.batches(lambda known: known.awaited(submission.tag))
        waiting = False
        for state in states:
            mark = (submission.tag, state.id)
            if state.size != submission.size or mark in self._foreign:
                continue
            if not state.ended:  # only its results tell whose it is
                self.report.change(f"batch {state.id} may be one that was sent before; its end will tell.")
                waiting = True
            elif self._first_key(state) in awaited:
                return state.id, False
            else:
                self._foreign.add(mark)
        return None, waiting

    def _first_key(self, state: BatchState) -> str | None:
        """Whose batch it is, one key tells: keys are hashes of whole questions."""
        for tried in range(MAX_TRIES):
            try:
                return next((key for key, _ in self.transport.results(state.id)), None)
            except InputError:  # its results are gone, or not for this key
                return None
            except Torn:
                if tried == MAX_TRIES - 1:
                    raise
                time.sleep(pause(tried, None))
        return None

    def _is_lost(self, submission: Submission) -> bool:
        """Whether a submission that was not found has had the time to be; its questions are free then."""
        now = time.monotonic()
        if now < self._first_seen.setdefault(submission.tag, now) + self.settle:
            return False
        self._end(submission, "lost", sent_again=submission.size)
        self.report.note(
            f"A batch of {submission.size} requests that was being sent when a run ended is not at the provider's; "
            "they are sent again."
        )
        return True

    def _collect(self, submission: Submission, state: BatchState) -> None:
        """Write down the results of a batch that has ended, each before the next; what is there is passed over."""
        awaited = self.journal.batches(lambda known: known.awaited(submission.tag))
        before, tried = len(awaited), 0
        while awaited:
            left = len(awaited)
            try:
                for key, item in self.transport.results(state.id):
                    if key in awaited:
                        awaited.remove(key)
                        self._receive(submission, key, item)
                missing = Torn(f"The results of batch {state.id} lack {len(awaited)} of {submission.size} requests.")
            except BatchRefused:
                self._end(submission, "refused")
                raise
            except InputError as error:
                raise self._unreadable(submission, error) from None
            except Torn as error:
                missing = error
            tried = 0 if len(awaited) < left else tried + 1
            if awaited and tried >= MAX_TRIES:
                if "lack" not in str(missing):
                    raise missing
                break
            if awaited:
                time.sleep(pause(tried, None))
        for key in awaited:
            self._receive(submission, key, BatchFault("not in the results", again=True))
        self._end(submission, "collected")
        self.desk.budget.look()
        self.report.collected(state, before)

    def _unreadable(self, submission: Submission, error: InputError) -> InputError:
        return InputError(
            f"batch {submission.batch} with {submission.size} requests cannot be read: {error} Use the key that sent "
            "it; if it is gone, give it up (--forget-batch), and its questions are asked and paid for again."
        )

    def _receive(self, submission: Submission, key: str, item: Reply | BatchFault) -> None:
        record: dict[str, Any] | None = None
        cost = 0.0
        if isinstance(item, BatchFault):
            self._faults[item.reason] += 1
            self.report.fault(item)
            if item.again:
                self._tries[key] += 1
            else:
                self._wrong[key] = item.reason
        else:
            record = {**item.to_json(), "batch": True}
            priced = self.transport.cost(item.usage)
            cost = self._measures.get(key, (0, 0.0))[1] if priced is None else priced
        self.journal.batches(lambda known: known.receive(submission.tag, key, record, kind=KIND, cost=cost))

    def _end(self, submission: Submission, state: str, *, sent_again: int = 0) -> None:
        self.journal.batches(lambda known: known.end(submission.tag, state, sent_again=sent_again))

    def _raise_wrong(self) -> None:
        """Name what was not answered, when everything else was."""
        if self._wrong:
            key, reason = next(iter(self._wrong.items()))
            more = f" ({len(self._wrong)} requests in all)" if len(self._wrong) > 1 else ""
            raise InputError(
                f"{self._rows.get(key, 'a question')}: {self.desk.judge.name} refused the request ({reason}){more}. "
                "All others are answered and in the journal."
            )
        hopeless = sum(count >= MAX_TRIES for count in self._tries.values())
        if hopeless:
            reasons = ", ".join(f"{reason}: {count}" for reason, count in self._faults.most_common(3))
            raise BuildError(f"{hopeless} requests came back without a reply from {MAX_TRIES} batches ({reasons}).")
