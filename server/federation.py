"""The federation as the coordinator meets it: which sites there are, and what they say."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from fedshift import UserError
from fedshift.protocol.cards import SiteCard
from fedshift.protocol.flower import ArrayRecord, ConfigRecord, Grid, Message
from fedshift.protocol.messages import (
    ANSWER,
    POOLED,
    Action,
    Instruction,
    details,
    request,
)
from fedshift.protocol.storage import write_atomic
from fedshift.server.exchange import exchange
from fedshift.server.plan import RunPlan
from fedshift.server.record import read_cards


@dataclass
class Sites:
    """The federation as the coordinator knows it: each site's node and card."""

    grid: Grid
    nodes: dict[str, int]
    cards: dict[str, SiteCard]
    deadline_s: float | None = None

    @property
    def names(self) -> dict[int, str]:
        """Site names by node."""
        return {node: name for name, node in self.nodes.items()}

    @property
    def labelled(self) -> list[str]:
        """The sites that train and have labels, sorted."""
        return [name for name in self.trainable if self.cards[name].has_labels]

    @property
    def trainable(self) -> list[str]:
        """The sites that may train, with labels or without, sorted."""
        return sorted(name for name, card in self.cards.items() if card.trains and name != POOLED)

    @property
    def scored(self) -> list[str]:
        """The sites on which models are scored, sorted: all real ones."""
        return sorted(name for name in self.nodes if name != POOLED)

    def ask(
        self,
        names: list[str],
        instruction: Instruction,
        arrays: ArrayRecord | None = None,
        bank: ArrayRecord | None = None,
        questions: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> Iterator[tuple[str, Message]]:
        """Send one request to each of ``names``; yield their replies in that order.

        ``questions`` hold what only one site is asked.
        """
        shared = request(instruction, arrays, bank=bank)
        messages = [
            Message(
                content=request(instruction, arrays, statistics=questions[name])
                if questions
                else shared,
                dst_node_id=self.nodes[name],
                message_type=instruction.action.message_type,
                group_id=str(instruction.round),
            )
            for name in names
        ]
        by_node = self.names
        for reply in exchange(self.grid, messages, self.deadline_s):
            yield by_node[reply.metadata.src_node_id], reply


def find(grid: Grid, instruction: Instruction) -> dict[str, int]:
    """The node of every site that the grid reaches, by the site's name, sorted.

    Raises :class:`UserError` when a site does not answer.
    """
    hello = request(instruction.but(action=Action.NAME))
    messages = [
        Message(content=hello, dst_node_id=node, message_type=Action.NAME.message_type)
        for node in grid.get_node_ids()
    ]
    nodes = {}
    for reply in exchange(grid, messages, None):
        if reply.has_error():
            raise UserError(f"a site does not answer: {reply.error.reason}")
        record = reply.content[ANSWER]
        assert isinstance(record, ConfigRecord)
        nodes[str(record["site"])] = reply.metadata.src_node_id
    return dict(sorted(nodes.items()))


def meet(grid: Grid, plan: RunPlan) -> Sites:
    """Find out which sites there are, and what each says of itself.

    Cards are asked for once a run and kept in ``checkpoints/sites.json``. Raises
    :class:`UserError` when a site cannot open its data, none can train, or a part is labelled
    nowhere.
    """
    sites = Sites(grid, find(grid, plan.instruction), {}, plan.deadline_s)
    path = plan.checkpoints / "sites.json"
    cards = read_cards(path)
    if cards is None:
        _ask_again(sites, plan)
        cards = []
        problems = []
        ask = plan.instruction.but(action=Action.CARD)
        for name, reply in sites.ask(list(sites.nodes), ask):
            if reply.has_error():
                problems.append(f"site {name}: {reply.error.reason}")
            else:
                cards.append(SiteCard.from_json(details(reply.content)))
        if problems:
            more = f" (and {len(problems) - 1} more sites)" if len(problems) > 1 else ""
            raise UserError(problems[0] + more)
        write_atomic(path, json.dumps([card.to_json() for card in cards], indent=1) + "\n")
    sites.cards = {card.name: card for card in cards}
    unread = [note for card in cards for note in card.notes if note.startswith("left out: ")]
    # Labels that could not be read are no labels that nobody drew.
    because = f" ({unread[0]})" if unread else ""
    if not sites.labelled:
        raise UserError(
            f"no site can train: none has a labelled training image{because}; check the manifest "
            "with `fedshift sites check`"
        )
    found = set().union(*(sites.cards[name].labelled for name in sites.labelled))
    absent = [name for name in plan.task["parts"] if name not in found]
    if absent:
        untold = [name for name in sites.labelled if not sites.cards[name].teaches[absent[0]]]
        if len(untold) == len(sites.labelled):
            raise UserError(
                f"no site that trains annotates '{absent[0]}': take it out of data.labels, or add "
                "it to a site in data.annotates"
            )
        raise UserError(
            f"'{absent[0]}' is to be learnt and labelled nowhere{because}: the training labels "
            f"hold {len(found)} of {len(plan.task['parts'])} names; take it out of data.labels or "
            "correct its value"
        )
    return sites


def _ask_again(sites: Sites, plan: RunPlan) -> None:
    """Have the sites note what the settings were chosen from; kept in ``checkpoints``."""
    for action in plan.told:
        answers = {
            name: None if reply.has_error() else details(reply.content)
            for name, reply in sites.ask(sites.scored, plan.instruction.but(action=action))
        }
        if action is Action.SUMMARY:
            text = json.dumps(answers, indent=1, sort_keys=True)
            write_atomic(plan.checkpoints / "summaries.json", text + "\n")
