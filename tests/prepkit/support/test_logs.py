"""Messages of the library's logs can be written to any file."""

import logging
import os

from prepkit.support.logs import logger


def test_a_path_that_is_no_text_is_escaped(caplog):
    log = logger("prepkit.somewhere")
    with caplog.at_level(logging.INFO, logger="prepkit"):
        log.info("opened '%s', %d instances", os.fsdecode(b"/zoos/\xff\xe9"), 3)
        log.info("opened '%s'", "/zoos/étude")
        logger("prepkit.somewhere").info("once")
    assert caplog.messages == ["opened '/zoos/\\udcff\\udce9', 3 instances", "opened '/zoos/étude'", "once"]
    assert len(log.filters) == 1
