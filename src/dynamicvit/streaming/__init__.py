"""Classify a video or camera frame by frame: late frames dropped, a latency target held."""

from dynamicvit.streaming.controller import Controller
from dynamicvit.streaming.events import Answer, Change, Event, Missed, Tally, Unreadable
from dynamicvit.streaming.feed import Feed, Ready
from dynamicvit.streaming.levels import Level, costs_of, levels_of
from dynamicvit.streaming.loop import RATIOS, Stream, answers
from dynamicvit.streaming.sources import Frame, Source, open_source

__all__ = [
    "RATIOS",
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
    "Stream",
    "Tally",
    "Unreadable",
    "answers",
    "costs_of",
    "levels_of",
    "open_source",
]
