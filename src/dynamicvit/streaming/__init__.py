"""A camera loop: frames in order, late ones dropped, latencies counted, a target held."""

from dynamicvit.streaming.controller import Controller
from dynamicvit.streaming.feed import Feed, Ready
from dynamicvit.streaming.frames import Frame, Source
from dynamicvit.streaming.levels import Level, costs_of, levels_of
from dynamicvit.streaming.lines import level_line, line_of
from dynamicvit.streaming.loop import Answer, Change, Event, Missed, Unreadable, stream
from dynamicvit.streaming.sources import open_source
from dynamicvit.streaming.tally import Tally, milliseconds

__all__ = [
    "Answer",
    "Change",
    "Controller",
    "Event",
    "Feed",
    "Frame",
    "Level",
    "Missed",
    "Ready",
    "Source",
    "Tally",
    "Unreadable",
    "costs_of",
    "level_line",
    "levels_of",
    "line_of",
    "milliseconds",
    "open_source",
    "stream",
]
