"""The push part of mockpost, a fake of FCM and APNs that others wrote, without the mail and file servers beside it.

Run by hypercorn, which speaks HTTP/2: `scripts/services run mockpost PORT DIR`.
"""

from contextlib import asynccontextmanager

from fastapi import FastAPI
from mockpost import db
from mockpost.routers import api_messages, push_native


@asynccontextmanager
async def lifespan(_app: FastAPI):
    await db.init_db()
    yield
    await db.close_db()


app = FastAPI(lifespan=lifespan)
app.include_router(push_native.router)
app.include_router(api_messages.router)
