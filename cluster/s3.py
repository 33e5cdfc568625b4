"""The one S3 client of a process: s3fs, with time-outs, adaptive retries that are counted, and no listing cache.

How long until an error comes out: a request has `ATTEMPTS` tries (or $AWS_MAX_ATTEMPTS) of at most
`CONNECT_TIMEOUT_S` to connect and `READ_TIMEOUT_S` between bytes, and the whole of it, with its pauses, `LIMIT_S` (plus
the time its data needs at `SLOWEST_BYTES_PER_S`). s3fs would retry again around that; requests made here go to its
client directly.
"""

import asyncio
import os
import threading
import uuid
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, TypeVar

import aiohttp
from aiobotocore.session import AioSession
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    FlexibleChecksumError,
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
    ParamValidationError,
)
from fsspec.asyn import sync
from s3fs import S3FileSystem

from cluster.uri import StorageError, Uri, display

CONNECT_TIMEOUT_S = 5
READ_TIMEOUT_S = 20
ATTEMPTS = 5
LIMIT_S = 180.0
SLOWEST_BYTES_PER_S = 128 * 1024
MAX_CONNECTIONS = 32
PAGE_KEYS = 1000

# Faults of the account, not of the object asked for: they must not turn good videos into failed ones.
_ACCOUNT_CODES = {
    "ExpiredToken",
    "InvalidAccessKeyId",
    "InvalidToken",
    "RequestTimeTooSkewed",
    "SignatureDoesNotMatch",
    "TokenRefreshRequired",
    "AuthorizationHeaderMalformed",
}
_BUSY_CODES = {"RequestTimeout", "SlowDown", "Throttling", "ThrottlingException", "TooManyRequests", "InternalError"}
_BODY_ERRORS = (HTTPClientError, IncompleteReadError, FlexibleChecksumError, aiohttp.ClientError, asyncio.TimeoutError)

_lock = threading.Lock()
_current: tuple[object, "S3FileSystem"] | None = None
_retries = 0

T = TypeVar("T")


class _SharedS3(S3FileSystem):
    """Pickled as a reference: the process that unpickles it uses its own client."""

    def __reduce__(self):
        return filesystem, ()


def filesystem() -> S3FileSystem:
    """The client of this process, shared by its threads; made anew when the AWS_* environment has changed.

    Readers that go through it by themselves (pyarrow) get s3fs's own retries too, two rounds around a request.
    """
    global _current
    key = (os.getpid(), tuple(sorted((k, v) for k, v in os.environ.items() if k.startswith("AWS_"))))
    with _lock:
        if _current is None or _current[0] != key:
            session = AioSession()
            session.register("request-created.s3", _count_retries)
            # s3fs keeps one instance a thread; one for all shares the connections and what was learnt of the rate.
            made = _SharedS3(
                session=session,
                skip_instance_cache=True,
                use_listings_cache=False,
                config_kwargs={
                    "connect_timeout": CONNECT_TIMEOUT_S,
                    "read_timeout": READ_TIMEOUT_S,
                    "retries": {
                        "mode": "adaptive",
                        "total_max_attempts": int(os.environ.get("AWS_MAX_ATTEMPTS") or ATTEMPTS),
                    },
                    "max_pool_connections": MAX_CONNECTIONS,
                },
            )
            made.retries = 2
            _current = (key, made)
        return _current[1]


def retry_count() -> int:
    """How many requests this process has sent again, after errors and broken-off answers alike."""
    return _retries


def _count_retries(request: Any, **_: Any) -> None:
    global _retries
    if request.context.get("retries", {}).get("attempt", 1) > 1:
        _retries += 1  # hooks run on the one event-loop thread alone


def put(uri: Uri, data: bytes, *, create: bool = False, if_match: str = "", limit_s: float | None = None) -> str | None:
    """One put: whole or not at all. Gives the new etag; None if the condition did not hold.

    `create` demands that nothing is there, `if_match` that what is there has this etag. StorageError on all else.
    """
    # A put whose answer was lost is sent again and then meets its own object: the mark tells it from another's.
    mark = uuid.uuid4().hex
    condition = {"IfNoneMatch": "*"} if create else {"IfMatch": f'"{if_match}"'} if if_match else {}

    async def send(client: Any) -> str | None:
        for attempt in range(ATTEMPTS):
            try:
                answer = await client.put_object(
                    Bucket=uri.bucket, Key=uri.path, Body=data, Metadata={"mma-put": mark}, **condition
                )
                return answer["ETag"].strip('"')
            except ClientError as error:
                status = _status(error)
                # 409: two conditional puts at once; the server asks to try again.
                if condition and status == 409 and attempt + 1 < ATTEMPTS:
                    await asyncio.sleep(0.1 * 2**attempt)
                    continue
                if condition and (status == 412 or (if_match and status == 404 and _code(error) != "NoSuchBucket")):
                    break
                raise
        try:
            there = await client.head_object(Bucket=uri.bucket, Key=uri.path)
        except ClientError as error:
            if _status(error) == 404:
                return None
            raise
        return there["ETag"].strip('"') if there["Metadata"].get("mma-put") == mark else None

    return _run(send, uri, limit_s or LIMIT_S + len(data) / SLOWEST_BYTES_PER_S)


def put_file(uri: Uri, path: str | os.PathLike[str]) -> None:
    """Uploads a local file of any size; it appears under its name when the last part has arrived, or not at all."""
    try:
        # Parts are 50 MB (more beyond 500 GB); ten at once, as is s3fs's habit, would hold half a gigabyte.
        filesystem().put_file(os.fspath(path), f"{uri.bucket}/{uri.path}", max_concurrency=2)
    except (OSError, ClientError, BotoCoreError, aiohttp.ClientError) as error:
        raise StorageError(f"{display(str(uri))}: {error}", retryable=True) from error


def get(uri: Uri, *, start: int = 0, length: int | None = None, if_match: str = "") -> tuple[bytes, dict]:
    """The bytes from `start` on (at most `length`, all by default) and the answer's head; broken bodies are retried."""
    wanted: dict = {"IfMatch": f'"{if_match}"'} if if_match else {}
    if start or length is not None:
        wanted["Range"] = f"bytes={start}-{'' if length is None else start + length - 1}"

    async def receive(client: Any) -> tuple[bytes, dict]:
        global _retries
        for attempt in range(ATTEMPTS):
            try:
                answer = await client.get_object(Bucket=uri.bucket, Key=uri.path, **wanted)
            except ClientError as error:
                if _status(error) == 416 and start == 0:  # no range of an empty object can be asked for
                    return b"", {"ContentRange": "bytes */0", "ETag": ""}
                raise
            try:
                async with answer.pop("Body") as body:
                    return await body.read(), answer
            except _BODY_ERRORS:
                if attempt + 1 == ATTEMPTS:
                    raise
                _retries += 1
                await asyncio.sleep(0.1 * 2**attempt)
        raise AssertionError("unreachable")

    return _run(receive, uri, LIMIT_S + (length or 0) / SLOWEST_BYTES_PER_S)


def head(uri: Uri) -> dict:
    """Size, etag and time of an object (`ContentLength`, `ETag`, `LastModified`)."""

    async def ask(client: Any) -> dict:
        try:
            return await client.head_object(Bucket=uri.bucket, Key=uri.path)
        except ClientError as error:
            if _status(error) not in (400, 403, 404):
                raise
            # The answer to a HEAD has no body: only a GET brings the server's words.
            answer = await client.get_object(Bucket=uri.bucket, Key=uri.path, Range="bytes=0-0")
            answer.pop("Body").close()
            raise

    return _run(ask, uri, LIMIT_S)


def list_objects(folder: Uri, prefix: str = "", *, recursive: bool) -> Iterator[dict]:
    """The objects under a folder whose names begin with `prefix`, page by page (`Key`, `Size`, `ETag`, …)."""
    start = folder.path.rstrip("/") + "/" if folder.path.strip("/") else ""
    wanted: dict = {"Bucket": folder.bucket, "Prefix": start + prefix, "MaxKeys": PAGE_KEYS}
    if not recursive:
        wanted["Delimiter"] = "/"
    while True:
        page = _run(lambda client: client.list_objects_v2(**wanted), folder, LIMIT_S)
        yield from page.get("Contents", [])
        if not page.get("IsTruncated"):
            return
        wanted["ContinuationToken"] = page["NextContinuationToken"]


def delete(uris: list[Uri]) -> None:
    """Deletes objects; one that is not there is no error. One request each: a batch's XML cannot hold every name."""

    async def send(client: Any) -> None:
        room = asyncio.Semaphore(MAX_CONNECTIONS // 2)

        async def one(uri: Uri) -> None:
            async with room:
                await client.delete_object(Bucket=uri.bucket, Key=uri.path)

        await asyncio.gather(*[one(uri) for uri in uris])

    if uris:
        _run(send, uris[0], LIMIT_S + len(uris))


def _run(ask: Callable[[Any], Awaitable[T]], uri: Uri, limit_s: float) -> T:
    """Runs a coroutine on s3fs's event loop within `limit_s`; every error comes out as a StorageError."""
    s3 = filesystem()

    async def with_client() -> T:
        return await ask(await s3.set_session())

    shown = display(str(uri))
    try:
        return sync(s3.loop, with_client, timeout=limit_s)
    except ClientError as error:
        raise _said(shown, error) from error
    except NoCredentialsError as error:
        raise StorageError(
            f"{shown}: no credentials found: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE",
            retryable=True,
        ) from error
    except ParamValidationError as error:
        raise StorageError(f"{shown}: {error}") from error
    except (BotoCoreError, aiohttp.ClientError) as error:
        raise StorageError(f"{shown}: {error}", retryable=True) from error
    except asyncio.TimeoutError as error:
        raise StorageError(f"{shown}: no answer within {limit_s:.0f} s", retryable=True) from error


def _status(error: ClientError) -> int:
    return error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def _said(shown: str, error: ClientError) -> StorageError:
    status, code = _status(error), _code(error)
    words = error.response.get("Error", {}).get("Message") or "no reason given"
    text = f"{shown}: {words} ({code or status})"
    if status == 412:
        return StorageError(f"{shown}: changed since it was listed; run again", retryable=True)
    missing = status == 404 or code in ("NoSuchKey", "NoSuchBucket")
    retryable = status >= 500 or status in (408, 429) or code in _ACCOUNT_CODES | _BUSY_CODES
    return StorageError(text, retryable=retryable and not missing, missing=missing)
