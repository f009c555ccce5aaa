"""When a worker lets a job that must run alone have its turn, and when the other jobs have theirs."""

FIRST_S = 1.0


class Turns:
    """Shares a worker's time between jobs that must run alone and the others, if both wait.

    A worker can take a job that must run alone only when it holds no other. So it has to stop claiming what stands
    behind such a job until its own jobs have ended. It tries that for a second; if its jobs take longer, it claims the
    others again for as long as it has tried, and then tries for twice as long. After a job that ran alone the others
    have their turn for as long as that job ran. If no job must run alone, nothing of this makes a difference.
    """

    def __init__(self, now: float) -> None:
        self._alone_since: float | None = None
        """When the worker claimed one job and no other since."""
        self._length = self._since = self._until = now
        self._begin(now)

    def overtakes(self, now: float, *, holds: bool) -> bool:
        """Whether the next claim may overtake a job that must run alone; `holds`: whether the worker holds jobs."""
        if not holds and self._alone_since is not None:
            self._begin(now + (now - self._alone_since))
            self._alone_since = None
        if holds and now >= self._until:
            self._length *= 2
            self._since = now + self._length
            self._until = self._since + self._length
        return now < self._since

    def note(self, now: float, *, holds: bool, claimed: int) -> None:
        """Note how many jobs a claim has got; `holds`: whether the worker held jobs before."""
        if holds and claimed:  # neither does the last job run alone, nor did one hold up this claim
            self._alone_since = None
            if now >= self._since:
                self._until = now + self._length
        if holds:
            return
        if claimed == 1 and now >= self._since:
            self._alone_since = now
        if now >= self._since or not claimed:
            self._begin(now)

    def _begin(self, now: float) -> None:
        """Let jobs that must run alone have their turn from now on."""
        self._length = FIRST_S
        self._since = now
        self._until = now + FIRST_S
