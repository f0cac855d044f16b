"""Every setting of the daemon, in one place; nothing else reads the environment.

Order of precedence: command line, environment (`ACCRETE_STATE_DIRECTORY`, nested with `__`),
secret files, the configuration file, defaults.
"""

from daemon.settings.backbone import BackboneSettings
from daemon.settings.gate import GateSettings
from daemon.settings.kafka import KafkaSource
from daemon.settings.kafka_security import KafkaSecurity
from daemon.settings.learner import LearnerSettings, OptionsCheck
from daemon.settings.limits import LimitSettings
from daemon.settings.load import load_settings
from daemon.settings.log import LogSettings
from daemon.settings.retention import RetentionSettings
from daemon.settings.root import Settings
from daemon.settings.secrets import secrets_directory
from daemon.settings.section import Section
from daemon.settings.serving import ServingSettings
from daemon.settings.sources import EmbeddedSource, FolderSource, SourceSettings
from daemon.settings.streams import StreamSettings
from daemon.settings.topics import ControlTopicSettings, EventSettings, RequestTopicSettings
from daemon.settings.trainer import TrainerSettings
from daemon.settings.trigger import TriggerSettings

__all__ = [
    "BackboneSettings",
    "ControlTopicSettings",
    "EmbeddedSource",
    "EventSettings",
    "FolderSource",
    "GateSettings",
    "KafkaSecurity",
    "KafkaSource",
    "LearnerSettings",
    "LimitSettings",
    "LogSettings",
    "OptionsCheck",
    "RequestTopicSettings",
    "RetentionSettings",
    "Section",
    "ServingSettings",
    "Settings",
    "SourceSettings",
    "StreamSettings",
    "TrainerSettings",
    "TriggerSettings",
    "load_settings",
    "secrets_directory",
]
