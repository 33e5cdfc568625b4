"""The made corpus's timelines (CORPUS.md): people, felt reactions, displays, frame truth, labels and the ceiling.

The inverse of stage 2. The drawing, the inverse of stage 1, lies in `mma.drawing` and takes `Timeline.controls`.
"""

from rnn.made.ceiling import ceiling, expected_labels, expected_labels_of_display
from rnn.made.options import CorpusOptions
from rnn.made.plan import Clip, plan_corpus
from rnn.made.subjects import ResponseStyle, Subject
from rnn.made.tables import data_info, frame_table, subjects_table, truth_table
from rnn.made.timeline import Timeline, frame_times, play, true_descriptors

__all__ = [
    "Clip",
    "CorpusOptions",
    "ResponseStyle",
    "Subject",
    "Timeline",
    "ceiling",
    "data_info",
    "expected_labels",
    "expected_labels_of_display",
    "frame_table",
    "frame_times",
    "plan_corpus",
    "play",
    "subjects_table",
    "true_descriptors",
    "truth_table",
]
