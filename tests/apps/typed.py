"A task for each kind of argument that plain JSON does not carry"
from dataclasses import dataclass, field
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, IntEnum
from uuid import UUID

class Colour(Enum): red = 'r'; blue = 'b'
class Size(IntEnum): small = 1; large = 2
@dataclass
class Line: sku: str; n: int; price: Decimal
@dataclass
class Order: id: UUID; at: datetime; lines: list[Line]; tags: set[str] = field(default_factory=set); colour: Colour = Colour.red

def show(v): return f'{type(v).__name__} {v!r}'

def of_datetime(v:datetime): return show(v)
def of_date(v:date): return show(v)
def of_time(v:time): return show(v)
def of_delta(v:timedelta): return show(v)
def of_uuid(v:UUID): return show(v)
def of_decimal(v:Decimal): return show(v)
def of_set(v:set[int]): return f'set {sorted(v)}'
def of_frozen(v:frozenset[str]): return f'frozenset {sorted(v)}'
def of_bytes(v:bytes): return show(v)
def of_tuple(v:tuple[int,str]): return show(v)
def of_enum(v:Colour): return show(v)
def of_intenum(v:Size): return show(v)
def of_line(v:Line): return show(v)
def of_order(v:Order): return show(v)
def of_nested(v:dict[str,list[datetime]]): return show(v)
def of_optional(v:UUID|None=None): return show(v)
def of_intkeys(v:dict[int,str]): return show(v)
def of_rest(**rest:Decimal): return show(rest['v'])
async def of_async(v:datetime): return show(v)
def of_int(v:int): return show(v)
def of_any(v): return show(v)

now = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=timezone.utc)
uid = UUID(int=7)
line = Line('a', 2, Decimal('1.10'))
values = dict(of_datetime=now, of_date=date(2026,1,2), of_time=time(3,4,5,6), of_delta=timedelta(days=2, microseconds=3), of_uuid=uid,
    of_decimal=Decimal('1.10'), of_set={3,1,2}, of_frozen=frozenset('ab'), of_bytes=b'\0\xff', of_tuple=(1,'a'), of_enum=Colour.blue,
    of_intenum=Size.large, of_line=line, of_order=Order(uid, now, [line,line], {'x'}, Colour.blue), of_nested={'a':[now,now]},
    of_optional=uid, of_intkeys={1:'a',22:'b'}, of_rest=Decimal('0.10'), of_async=now)
