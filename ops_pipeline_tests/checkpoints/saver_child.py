"""Assistants on LangGraph's own saver for Redis, run by the Python of `.venv-saver`: one line of JSON per command.

`{"do": "run", "graph": …, "thread": …, "days": …}` runs a graph so many days ago; `resume` answers its interrupt;
`load` tells what a thread holds, `list` how many checkpoints the saver lists of it; `prune` and `delete` are the
saver's own. Graphs that begin with `shallow` are on the saver that keeps one checkpoint per thread.
"""

import json
import operator
import sys
import time
from datetime import UTC, datetime
from functools import partial
from typing import Annotated, Any, TypedDict

from langgraph.channels.delta import DeltaChannel
from langgraph.checkpoint.base import id as ids
from langgraph.checkpoint.redis import RedisSaver, ShallowRedisSaver
from langgraph.graph import START, StateGraph
from langgraph.types import Command, interrupt

NOW = time.time_ns
DAY_NANOSECONDS = 86_400 * 10**9


class State(TypedDict):
    """A conversation that each checkpoint holds as a whole."""

    messages: Annotated[list[str], operator.add]


def appended(state: list[str], writes: list[list[str]]) -> list[str]:
    """What deltas add up to."""
    return [*(state or []), *(message for write in writes for message in write)]


class DeltaState(TypedDict):
    """A conversation of which each checkpoint holds only what is new."""

    messages: Annotated[list[str], DeltaChannel(appended)]


def say(state: Any) -> dict[str, list[str]]:
    """An answer."""
    return {"messages": [f"answer {len(state['messages'])}"]}


def ask(state: Any) -> dict[str, list[str]]:
    """A question to a person."""
    return {"messages": [interrupt("May I?")]}


def graphs(saver: Any) -> dict[str, Any]:
    """Graphs by name."""
    plain = StateGraph(State).add_node("say", say).add_edge(START, "say")
    asking = StateGraph(State).add_node("ask", ask).add_edge(START, "ask")
    delta = StateGraph(DeltaState).add_node("say", say).add_edge(START, "say")
    inner = plain.compile(checkpointer=True)
    outer = StateGraph(State).add_node("inner", inner).add_edge(START, "inner")
    made = {"plain": plain, "asking": asking, "delta": delta, "outer": outer}
    return {name: graph.compile(checkpointer=saver) for name, graph in made.items()}


def put(really: Any, config: Any, checkpoint: Any, *rest: Any) -> Any:
    """Put a checkpoint whose time is that of its id, which LangGraph takes from another clock."""
    seconds = time.time_ns() / 1e9
    return really(config, checkpoint | {"ts": datetime.fromtimestamp(seconds, UTC).isoformat()}, *rest)


def main() -> None:
    """Obey line by line."""
    place = sys.argv[1]
    with RedisSaver.from_conn_string(place) as full, ShallowRedisSaver.from_conn_string(place) as shallow:
        full.setup()
        shallow.setup()
        for one in (full, shallow):
            one.put = partial(put, one.put)  # type: ignore[method-assign]
        known = graphs(full) | {f"shallow {name}": graph for name, graph in graphs(shallow).items()}
        for line in sys.stdin:
            order = json.loads(line)
            graph, config = known[order["graph"]], {"configurable": {"thread_id": order["thread"]}}
            back = int(order.get("days", 0) * DAY_NANOSECONDS)
            # Its ids never go back in time of themselves.
            time.time_ns, ids._last_v6_timestamp = (lambda back=back: NOW() - back), None
            if order["do"] == "run":
                graph.invoke({"messages": ["question"]}, config)
            elif order["do"] == "resume":
                graph.invoke(Command(resume="yes"), config)
            saver = shallow if order["graph"].startswith("shallow") else full
            if order["do"] == "prune":
                saver.prune([order["thread"]])
            elif order["do"] == "delete":
                saver.delete_thread(order["thread"])
            elif order["do"] == "list":
                print(json.dumps({"listed": len(list(saver.list(config)))}), flush=True)
                continue
            state = graph.get_state(config)
            print(json.dumps({"messages": state.values.get("messages", []), "next": state.next}), flush=True)


main()
