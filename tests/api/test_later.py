"""Parts that are made when they are first needed."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading

from runed.api.later import Later


async def test_all_who_need_a_part_get_the_same_one_although_the_first_leaves() -> None:
    go_on = threading.Event()
    made: list[object] = []

    def make() -> object:
        go_on.wait(10)
        made.append(object())
        return made[-1]

    part = Later(make)
    first, *others = [asyncio.create_task(part.get()) for _ in range(3)]
    await asyncio.sleep(0.05)
    first.cancel()
    go_on.set()
    assert await asyncio.gather(*others) == made * 2
    assert await part.get() is made[0]
    assert first.cancelled()
    assert len(made) == 1


def test_a_daemon_that_only_serves_ordinary_calls_imports_nothing_for_others() -> None:
    unused = {"starlette", "pyqwest", "protobuf", "connectrpc.server", "connectrpc.client"}
    unused |= {"runed.api.ollama.app", "runed.api.tei.app", "runed.api.rerank.app", "runed.api.openai.app"}
    unused |= {"runed.scheduling.reranking", "runed.backends.llama.reranker"}
    program = (
        f"import sys, runed.api.app, runed.daemon.host, runed.backends.llama; print(sorted({unused} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout == "[]\n"
