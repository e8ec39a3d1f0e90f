import asyncio
import gc

from damoserve_server.tasks import settled


def test_a_cancelled_waiter_leaves_at_once_when_the_work_can_be_withdrawn():
    async def scenario():
        work = asyncio.get_running_loop().create_future()
        waiter = asyncio.ensure_future(settled(work, lambda: True))
        await asyncio.sleep(0)
        waiter.cancel()
        await asyncio.wait([waiter])
        return waiter.cancelled(), work.done()

    assert asyncio.run(scenario()) == (True, False)


def test_otherwise_it_leaves_with_the_work_however_often_it_is_cancelled():
    async def scenario():
        work = asyncio.get_running_loop().create_future()
        waiter = asyncio.ensure_future(settled(work, lambda: False))
        await asyncio.sleep(0)
        states = []
        for _ in range(3):
            waiter.cancel()
            for _ in range(3):
                await asyncio.sleep(0)
            states.append(waiter.done())
        work.set_result(None)
        await asyncio.wait([waiter])
        return states, waiter.cancelled()

    assert asyncio.run(scenario()) == ([False] * 3, True)


def test_results_and_errors_come_through():
    async def scenario():
        work = asyncio.get_running_loop().create_future()
        work.set_result(7)
        failed = asyncio.get_running_loop().create_future()
        failed.set_exception(ValueError("no"))
        return await asyncio.gather(settled(work, bool), settled(failed, bool), return_exceptions=True)

    result, error = asyncio.run(scenario())
    assert result == 7
    assert isinstance(error, ValueError)


def test_what_the_work_raises_after_its_waiter_has_left_bothers_nobody():
    unheard = []

    async def scenario():
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: unheard.append(context))
        work = asyncio.get_running_loop().create_future()
        waiter = asyncio.ensure_future(settled(work, lambda: False))
        await asyncio.sleep(0)
        waiter.cancel()
        await asyncio.sleep(0)
        work.set_exception(ValueError("no"))
        await asyncio.wait([waiter])
        assert waiter.cancelled()
        del work, waiter
        gc.collect()

    asyncio.run(scenario())
    assert unheard == []
