"""Classify a video or camera frame by frame, dropping late frames and holding a latency target."""

from dynamicvit.streaming.controller import Controller
from dynamicvit.streaming.events import Answer, Change, Event, Missed, Tally, UnreadableFrame
from dynamicvit.streaming.feed import Feed, Ready
from dynamicvit.streaming.frames import Frame, FrameSource, open_frames
from dynamicvit.streaming.levels import Level, costs_of, levels_of
from dynamicvit.streaming.loop import RATIOS, Stream, answers

__all__ = [
    "RATIOS",
    "Answer",
    "Change",
    "Controller",
    "Event",
    "Feed",
    "Frame",
    "FrameSource",
    "Level",
    "Missed",
    "Ready",
    "Stream",
    "Tally",
    "UnreadableFrame",
    "answers",
    "costs_of",
    "levels_of",
    "open_frames",
]
