"""Assistants on LangGraph's own saver for Redis, run by the Python of `.venv-saver`: one line of JSON per command.

`{"do": "run", "graph": …, "thread": …, "days": …}` runs a graph so many days ago; `resume` answers its interrupt;
`load` tells what a thread holds.
"""

import json
import operator
import sys
import time
from typing import Annotated, Any, TypedDict

from langgraph.channels.delta import DeltaChannel
from langgraph.checkpoint.base import id as ids
from langgraph.checkpoint.redis import RedisSaver
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


def graphs(saver: RedisSaver) -> dict[str, Any]:
    """Graphs by name."""
    plain = StateGraph(State).add_node("say", say).add_edge(START, "say")
    asking = StateGraph(State).add_node("ask", ask).add_edge(START, "ask")
    delta = StateGraph(DeltaState).add_node("say", say).add_edge(START, "say")
    inner = plain.compile(checkpointer=True)
    outer = StateGraph(State).add_node("inner", inner).add_edge(START, "inner")
    made = {"plain": plain, "asking": asking, "delta": delta, "outer": outer}
    return {name: graph.compile(checkpointer=saver) for name, graph in made.items()}


def main() -> None:
    """Obey line by line."""
    with RedisSaver.from_conn_string(sys.argv[1]) as saver:
        saver.setup()
        known = graphs(saver)
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
            state = graph.get_state(config)
            print(json.dumps({"messages": state.values.get("messages", []), "next": state.next}), flush=True)


main()
