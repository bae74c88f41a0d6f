"""A link between ground and satellites: from payload bytes to wire bytes, seconds, money and energy.

Everything here is modelled (docs/measured-and-modelled.md): the payloads are measured, the link is not. Two directions:
`ground_to_sat` carries the broadcast, `sat_to_ground` the update.
"""

from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, ConfigDict, Field, SkipValidation, ValidationInfo, field_validator
from pydantic.dataclasses import dataclass

from fl.communication.billing import STRICT, Billing, NotNegative, Whole
from fl.communication.contacts import Contacts
from fl.core.presets import CONF
from fl.core.units import DAY_S

WINDOWS = CONF / "link" / "windows"

ALWAYS = "always"

LONGEST_S = 366.0 * DAY_S
"""No training takes longer, and no contact is so far away."""

Rate = Annotated[float, Field(ge=1, allow_inf_nan=False, strict=True)]

Text = Annotated[str, Field(min_length=1, strict=True)]


@dataclass(frozen=True, config=STRICT)
class Framing:
    """What packets and frames add to a payload.

    Attributes:
        frame_bytes: length of a transfer frame on the wire.
        frame_data_bytes: of which data.
        pdu_bytes: payload in one packet (protocol data unit).
        pdu_header_bytes: that each packet adds.
        loss: share of frames that are lost and sent again, in [0, 1).
    """

    frame_bytes: Whole
    frame_data_bytes: Whole
    pdu_bytes: Whole
    pdu_header_bytes: Annotated[int, Field(ge=0, strict=True)]
    loss: Annotated[float, Field(ge=0, lt=1, strict=True)] = 0.0

    @field_validator("frame_data_bytes")
    @classmethod
    def _fits(cls, value: int, info: ValidationInfo) -> int:
        if value > info.data.get("frame_bytes", value):
            raise ValueError(f"is more than frame_bytes={info.data['frame_bytes']}; a frame holds less than its length")
        return value

    def wire_bytes(self, payload_bytes: int) -> float:
        """Returns `ceil(app / frame_data) * frame / (1 - loss)` with `app = payload + packets * header`."""
        packets = -(-payload_bytes // self.pdu_bytes)
        frames = -(-(payload_bytes + packets * self.pdu_header_bytes) // self.frame_data_bytes)
        return frames * self.frame_bytes / (1 - self.loss)


def _read_windows(value: Any) -> Contacts | None:
    """Reads "always", or the path of a file; a bare name is one of those shipped in conf/link/windows/."""
    if value == ALWAYS:
        return None
    if isinstance(value, Contacts):
        return value
    if not isinstance(value, str):
        raise ValueError(f"must be {ALWAYS} or the path of a file of contact windows")
    return Contacts.read(WINDOWS / value if Path(value).name == value else Path(value).expanduser())


@dataclass(frozen=True, config=ConfigDict(extra="forbid", arbitrary_types_allowed=True))
class Link:
    """A way between ground and satellites, as `conf/link/*.yaml` gives it.

    Attributes:
        name: how results call it.
        ground_to_sat_bps: rate of the broadcast; None for no limit.
        sat_to_ground_bps: rate of the update.
        ground_to_sat_framing: None for none.
        sat_to_ground_framing: see `ground_to_sat_framing`.
        windows: when satellites are in contact: "always" (None once read), or a file of `scripts/contact_windows.py`.
        acquisition_s: that every contact loses before data flows.
        billing: per MB, per started minute or per credit.
        tx_w: what the satellite's radio draws while it sends; None where unknown.
        rx_w: the same while it receives.
        train_s: of one client's training on board; None for the seconds measured where the clients really ran.
        price_source: where the price comes from.
        price_as_of: when it was so.
        inter_satellite_bps: rate between neighbours of a plane; None where there is nothing between them.
    """

    name: Text
    ground_to_sat_bps: Rate | None
    sat_to_ground_bps: Rate | None
    ground_to_sat_framing: Framing | None
    sat_to_ground_framing: Framing | None
    windows: Annotated[SkipValidation[Contacts | None], BeforeValidator(_read_windows)]
    acquisition_s: NotNegative
    billing: Billing
    tx_w: NotNegative | None
    rx_w: NotNegative | None
    train_s: Annotated[float, Field(ge=0, le=LONGEST_S, allow_inf_nan=False, strict=True)] | None
    price_source: Text
    price_as_of: Text
    inter_satellite_bps: Rate | None = None

    @field_validator("acquisition_s")
    @classmethod
    def _leaves_time(cls, value: float, info: ValidationInfo) -> float:
        if "windows" not in info.data:  # refused already
            return value
        contacts = info.data["windows"]
        if contacts is None and value:
            raise ValueError(f"there is nothing to acquire with windows={ALWAYS}; set it to 0")
        for satellite in range(len(contacts.windows) if contacts else 0):
            if contacts.longest_s(satellite) <= value:
                raise ValueError(f"satellite {satellite} has no contact longer than that; nothing could be sent")
        return value
