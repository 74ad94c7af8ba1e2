"""A log handler that blocks while a file exists, as one does whose disk is full or whose server does not answer."""

import logging
import os
import time


class GateHandler(logging.StreamHandler):
    def __init__(self, path: str):
        super().__init__()
        self.path = path
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))

    def emit(self, record):
        while os.path.exists(self.path):
            time.sleep(0.01)
        super().emit(record)
