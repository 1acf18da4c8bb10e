"""Limits that all endpoints share."""

import asyncio

import pytest

pytest.importorskip("starlette")

from components.serving import service as service_module
from components.serving.api_errors import ApiError
from components.serving.engine import Engine
from components.serving.service import Service


def test_a_body_that_does_not_arrive_is_given_up(monkeypatch):
    class Slow:
        headers = {"content-type": "application/json"}

        async def stream(self):
            yield b"{"
            await asyncio.sleep(60)

    monkeypatch.setattr(service_module, "ARRIVAL", 0.01)
    service = Service([], Engine({}))
    with pytest.raises(ApiError) as error:
        asyncio.run(service.body(Slow()))
    service.close()
    assert error.value.status == 408
