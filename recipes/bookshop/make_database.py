"""Build the database of Harbour Lane Books, an invented shop.

    python make_database.py OUT.sqlite [--seed 7]

Standard library only. The same seed gives the same rows on every machine: the only source of chance is
random.Random(seed).random(), whose sequence does not change between Python versions.
"""

import argparse
import datetime
import random
import sqlite3
from pathlib import Path

SCHEMA = """
CREATE TABLE customers(id INTEGER PRIMARY KEY, name TEXT, city TEXT, email TEXT, phone TEXT, joined TEXT);
CREATE TABLE books(id INTEGER PRIMARY KEY, title TEXT, author TEXT, genre TEXT, price REAL, year INTEGER,
                   stock INTEGER);
CREATE TABLE orders(id INTEGER PRIMARY KEY, customer_id INTEGER REFERENCES customers(id), ordered TEXT, status TEXT);
CREATE TABLE order_lines(order_id INTEGER REFERENCES orders(id), book_id INTEGER REFERENCES books(id),
                         quantity INTEGER);
CREATE TABLE shipments(order_id INTEGER REFERENCES orders(id), carrier TEXT, shipped TEXT, delivered TEXT);
CREATE TABLE returns(id INTEGER PRIMARY KEY, order_id INTEGER REFERENCES orders(id),
                     book_id INTEGER REFERENCES books(id), reason TEXT, returned TEXT);
"""

TABLES = ("customers", "books", "orders", "order_lines", "shipments", "returns")

# genre: (typical price, authors, titles); authors listed first write more
SHELVES = {
    "crime": (
        11,
        "Ines Calloway; Tobias Renner; Maud Ellery; Dorian Pike",
        """
        The Lamplighter Alibi; Nine Doors Down; A Quiet Street in Rain; The Copper Ledger; Murder at Low Tide;
        The Second Signature; Cold Tea for Two; The Ferryman Confession; No Light in Millgate; The Paper Witness;
        Death Keeps a Diary; The Thursday Informant""",
    ),
    "thriller": (
        12,
        "Silas Brandt; Katya Molen; Reuben Falk",
        """
        Forty Minutes to Oslo; The Glass Courier; Blackout Protocol; Last Train from Varna; The Sleeper Clock;
        A Border Made of Smoke; The Red Cipher; Hold the Bridge; Zero Hour Harbour; The Silent Exchange;
        Someone Else's Passport""",
    ),
    "science fiction": (
        13,
        "Orla Vance; Ptolemy Greaves; Suri Nakata; Henrik Dale",
        """
        The Orchard on Ceres; Signals from the Ninth Moon; Rust and Starlight; The Archive of Tides;
        A Clockmaker in Orbit; Apprentice of Gravity; The Long Sleep Home; Seven Copies of Ana; The Helium Gardens;
        Passengers of the Meridian; Salt on the Solar Wind; The Last Analog City""",
    ),
    "fantasy": (
        14,
        "Elspeth Thornwood; Cassian Moor; Yrsa Halden; Bram Oakley",
        """
        The Moth King; Daughters of the Salt Gate; A Crown of Nettles; The Wandering Forge; Where Rivers Sleep;
        The Cartographer of Dreams; Ember and Thistle; The Ninefold Bell; The Borrowed Sword; The Hollow Throne;
        A Dragon Called Tuesday; The Witch of Greyfen""",
    ),
    "romance": (
        9,
        "Lila Marchetti; Rosalind Quay; Etienne Dufort",
        """
        Letters to Lisbon; A Spoonful of June; The Florist Next Door; Kiss Me at Platform Four; Summer on Anchor Street;
        The Wrong Best Man; Half a Waltz; Dancing with Mr Ferris; The Bakery at Windmill Corner; Only in Autumn;
        Two Tickets to Verona""",
    ),
    "historical fiction": (
        13,
        "Agnes Fairweather; Lucan Stroud; Beatrix Holloway; Ivo Petrarch",
        """
        The Silk Dyer's Daughter; The Winter Envoy; A House on Candle Row; The Queen's Apothecary; Bread and Gunpowder;
        The Salt Road; The Last Falconer; Beneath the Tin Mines; The Herring Girls; A Portrait of Lady Ashdown;
        The Mapmaker of Ghent""",
    ),
    "horror": (
        11,
        "Corvin Hale; Mina Drozd; Alaric Stone",
        """
        The Well Behind the Chapel; Something in the Nursery; Teeth of the Marsh; The Hungry Attic; They Knock Twice;
        The Pale Lodger; A Choir of Crows; What the Tide Left; Skin of Candle Wax; The Thirteenth Bed""",
    ),
    "poetry": (
        10,
        "Hester Lowell; Amadou Sarr; Wren Castellan; Pia Lindqvist",
        """
        Small Weather; The Unfinished Shore; Salt Psalms; Forty Kinds of Blue; A Grammar of Birds; The Kettle Sings;
        Night Ferry Sonnets; Ash and Apricot; Lines for a Lighthouse; Field Notes on Longing""",
    ),
    "cookery": (
        21,
        "Fenella Crisp; Marco Bellandi; Anjali Prasad; Tomas Herrera",
        """
        The One Pot Harbour; Bread Before Breakfast; Seven Spices; A Year of Soup; The Pickle Shelf;
        Sunday Dumplings; Fire and Flatbread; Cooking for the Crew; The Honest Tomato; Fish on Friday;
        Sugar and Sea Salt""",
    ),
    "travel": (
        15,
        "Jonah Whitlock; Marit Solberg; Cleo Adebayo",
        """
        Slow Boats and Short Maps; By Rail to Samarkand; A Donkey Through Anatolia; The Ferry Diaries;
        Thirty Islands in Thirty Weeks; The Far End of Norway; Walking the Amber Coast; Night Buses of Peru;
        Tea Houses of Nepal; An Atlas of Detours""",
    ),
    "history": (
        19,
        "Edmund Carraway; Philippa Thorne; Viktor Asel; Nuala Brennock",
        """
        Age of Rope and Tar; A Short History of Glass; Kings of the Narrow Sea; The Plague Year in Bristol;
        Women of the Print Shops; The Coffee Wars; How the Canals Were Dug; The Forgotten Regency; Empires of Paper;
        The Century of Merchants; Nine Sieges""",
    ),
    "biography": (
        18,
        "Harriet Pemberton; Oswin Clarke; Renata Voss",
        """
        The Woman Who Counted Stars; Captain of Nothing; A Life in Marmalade; The Reluctant Composer;
        Iron Violet; The Bridge Builder; Chasing Dr Merriman; The Man Who Painted Fog; Her Name Was Halcyon;
        The Quiet Minister""",
    ),
    "gardening": (
        17,
        "Posy Hargreave; Dilwyn Rees; Saskia Blom",
        """
        The Lazy Allotment; Roses in Sandy Soil; A Hedge for Every Bird; Pots on the Balcony; The Kitchen Garden Year;
        Ferns and Shade; Compost and Patience; The Seaside Border; Pruning Without Fear; Wildflowers from Seed""",
    ),
    "nature": (
        16,
        "Rowan Ashby; Ingrid Sorley; Keir Maclaren",
        """
        The Secret Life of Puffins; Moss and Rain; Listening to Otters; The Estuary Year; A Field Guide to Puddles;
        The Owl in the Barn; Whale Roads; The Bee Almanac; Under the Kelp; Hares at First Light;
        The Slow Return of Wolves""",
    ),
    "science": (
        18,
        "Dr Amara Osei; Leopold Finch; Greta Lindholm",
        """
        The Curious Life of Ice; Why Bridges Hum; A Brief Tour of Zero; The Weather Machine; Atoms at Breakfast;
        The Clock in Every Cell; Counting on Chaos; The Shape of a Sneeze; Light and Its Liars; Seven Useful Errors""",
    ),
    "philosophy": (
        14,
        "Benedikt Krall; Simone Aubert; Thaddeus Moss",
        """
        On Being Late; The Ethics of Small Talk; A Defence of Doubt; What We Owe to Strangers; The Idle Hour;
        Thinking in Doorways; The Borrowed Self; The Comfort of Limits; Reasons and Rain; The Examined Kitchen""",
    ),
    "art": (
        26,
        "Odette Lamarque; Piers Hollander; Yuki Tanemura",
        """
        Painting the Tide; The Colour of Slate; Line and Shadow; The Handbook of Etching; Women at the Easel;
        Blue Before Breakfast; The Museum of Small Things; Drawing Boats; The Fresco Hunters; A Century of Posters""",
    ),
    "music": (
        17,
        "Callum Strand; Delphine Roux; Ezra Whitcombe",
        """
        The Accordion Years; How to Hear a Fugue; Songs from the Herring Fleet; The Jazz Cellar; Four Strings and a Bow;
        Quiet Please; The Piano Tuner; Sea Shanties Explained; Drums of the Delta; A Winter of Singing""",
    ),
    "short stories": (
        10,
        "Nell Carrow; Idris Vaughan; Paloma Reyes; Gus Tillery",
        """
        Eleven Suitcases; The Umbrella Thief; Postcards Nobody Sent; Stories for a Slow Train; The Man with Two Mondays;
        Twelve Rooms; The Borrowed Dog; Small Fires; Other People's Windows; The Museum of Lost Gloves""",
    ),
    "essays": (
        12,
        "Marguerite Dane; Otis Fairbanks; Leila Haddad",
        """
        Notes from a Cold Desk; The Art of Leaving Parties; Against Umbrellas; Fifteen Walks; A Toolbox for Two;
        The Weight of Maps; In Praise of Dust; Arguments with the Sea; Talking to Plumbers; The Sunday Drawer""",
    ),
    "drama": (
        9,
        "Octavia Prynne; Milos Havel; Desmond Achebe",
        """
        Revenge of the Understudy; Three Chairs; A Kingdom of Clerks; The Weather in Act Two; Last Orders at the Anchor;
        The Glass Parlour; Mother Courtesy; The Fifth Brother; Exit by Moonlight; The Prompter""",
    ),
    "humour": (
        10,
        "Barnaby Stubbs; Prudence Oddy; Felix Wormold",
        """
        How to Lose a Regatta; The Vicar's Motorbike; A Complete Guide to Queuing; My Landlord Is a Goat;
        The Committee for Biscuits; Awkward at Weddings; The Accidental Mayor; Uncle Percy Buys a Boat;
        Dogs I Have Disappointed; The Worst Hotel in Wales""",
    ),
    "young adult": (
        9,
        "Zadie Monk; Finlay Archer; Noor Rahimi; Juno Blackwood",
        """
        The Summer Raft; Everything After Friday; Girl with a Broken Compass; The Skatepark Ghost;
        Loud and Clear; Seventeen Summers; The Rules of Rooftops; Half Past Invisible; My Sister the Astronaut;
        The Boy Who Drew Storms; Paper Planes Over Hull""",
    ),
    "fairy tale": (
        12,
        "Tilda Greenaway; Anselm Fox; Mirela Kovac",
        """
        The Bear Who Kept Bees; The Tailor and the Tide; Three Silver Spoons; The Princess of Puddle Lane;
        The Goose Who Lied; Seven Lanterns; The Clever Cat; Under the Elder Tree; The Giant's Left Shoe;
        The Kite and the King""",
    ),
    "maritime": (
        18,
        "Captain Ewan Tregarth; Solveig Maren; Jasper Kittow",
        """
        Rope, Sail and Weather; The Lighthouse Logs; Wrecks of the Western Approaches; Knots for Cold Hands;
        The Herring Fleet; The Last Clipper; Pilots of the Estuary; Under Reefed Canvas; The Lifeboat Men;
        A Handbook of Tides""",
    ),
    "folklore": (
        13,
        "Morwenna Tase; Gethin Prosser; Aino Rautio",
        """
        Hares, Hags and Hedgerows; The Selkie Book; Bells Beneath the Sea; Corn Dollies and Candle Ghosts;
        The Green Calendar; Trolls of the North Road; A Cupboard of Charms; The Black Dog Walks;
        Midsummer Fires; Songs of the Drowned Village""",
    ),
    "sport": (
        14,
        "Duncan Ridley; Carmen Ortega; Bo Lindgren",
        """
        The Hill Runner; Ninety Minutes in Mud; The Cold Water Club; Rowing Against the Tide; The Last Over;
        Pedal North; Winter in Goal; The Long Peloton; Ropes and Ridges; Sixteen Lengths Before Dawn""",
    ),
    "crafts": (
        19,
        "Winifred Locke; Hana Morishita; Olof Berg",
        """
        The Patient Needle; Knitting for Gales; Paper Folding at Midnight; The Whittling Bench; Indigo at Home;
        Baskets from the Hedge; Bookbinding for Beginners; The Mending Basket; Looms and Ladders; Clay Days""",
    ),
    "photography": (
        28,
        "Astrid Nyberg; Lorenzo Vidal; Peregrine Shaw",
        """
        Harbours Before Dawn; The Patient Lens; Street Corners; Fog and Film; Faces of the Fish Market;
        The Darkroom Handbook; Light Through Keyholes; Ten Thousand Gulls; Portraits at the Quay; Shooting the Moon""",
    ),
    "architecture": (
        29,
        "Clemence Hardy; Tadeusz Wolk; Imogen Latch",
        """
        The Staircase Book; Houses That Float; Brick by Brick; Chapels of the Coast; The Concrete Garden;
        Windows and Weather; A Roof for Everyone; The Vanishing Pier; Towers of Salt; The House of Many Doors""",
    ),
}

# what the pages of the site say about some books is true here too
FIXED_YEAR = {
    "The Lamplighter Alibi": 2011,
    "Murder at Low Tide": 2014,
    "Cold Tea for Two": 2019,
    "The Orchard on Ceres": 2009,
    "A Clockmaker in Orbit": 2016,
    "The Moth King": 2005,
    "Where Rivers Sleep": 2013,
    "The Silk Dyer's Daughter": 2008,
    "Bread and Gunpowder": 2017,
    "Small Weather": 1998,
    "Forty Kinds of Blue": 2010,
    "The One Pot Harbour": 2015,
    "The Pickle Shelf": 2021,
    "Age of Rope and Tar": 2003,
    "The Secret Life of Puffins": 2012,
    "The Curious Life of Ice": 2018,
    "Harbours Before Dawn": 2016,
    "Eleven Suitcases": 2007,
    "Hares, Hags and Hedgerows": 2014,
    "The Bear Who Kept Bees": 1996,
    "Letters to Lisbon": 2018,
}

# their author must be the first one of the shelf; nothing else needs a fixed author
LEAD = {
    "The Lamplighter Alibi",
    "Murder at Low Tide",
    "Cold Tea for Two",
    "The Orchard on Ceres",
    "A Clockmaker in Orbit",
    "The Moth King",
    "Where Rivers Sleep",
    "The Silk Dyer's Daughter",
    "Bread and Gunpowder",
    "Small Weather",
    "Forty Kinds of Blue",
    "The One Pot Harbour",
    "The Pickle Shelf",
    "Age of Rope and Tar",
    "The Secret Life of Puffins",
    "The Curious Life of Ice",
    "Harbours Before Dawn",
    "Eleven Suitcases",
    "Hares, Hags and Hedgerows",
    "The Bear Who Kept Bees",
    "Letters to Lisbon",
}

CITIES = """Bristol; Cardiff; London; Plymouth; Exeter; Swansea; Leeds; Manchester; Glasgow; Edinburgh; Dublin; Belfast;
    Liverpool; Sheffield; York; Norwich; Cambridge; Oxford; Brighton; Southampton; Portsmouth; Aberdeen; Dundee;
    Newcastle; Hull; Lincoln; Derby; Nottingham; Leicester; Coventry; Truro; Penzance; Bath; Gloucester; Worcester;
    Chester; Lancaster; Carlisle; Inverness; Galway; Cork; Limerick; Durham; Ipswich; Canterbury; Winchester"""

FIRST = """Abigail; Adrian; Alma; Andrei; Anneke; Arlo; Astor; Bella; Bertram; Bianca; Bridget; Callista; Cedric; Chloe;
    Conrad; Daphne; Declan; Dina; Edith; Elias; Emrys; Esther; Farah; Florian; Freya; Gareth; Gloria; Hamish; Hazel;
    Hugo; Imran; Iris; Jarvis; Joan; Kamal; Keira; Lachlan; Leonie; Lorcan; Lydia; Malik; Marian; Mateo; Mirabel; Nadia;
    Neville; Olive; Omar; Paula; Quentin; Ramona; Rhys; Sabine; Samir; Selma; Stellan; Tamsin; Ulla; Vera; Winston;
    Yasmin"""

LAST = """Abernathy; Ainsley; Barlow; Beckett; Birch; Bramble; Burnett; Cable; Chandler; Coombe; Copley; Crane; Dalby;
    Denholm; Drummond; Eastwood; Eccles; Fenton; Forsyth; Galloway; Garland; Goodwin; Hadley; Harker; Hobbs;
    Hurst; Ingram; Jessop; Kemble; Kirkby; Langley; Lister; Lomax; Marlow; Merrick; Milburn; Nesbit; Norcott;
    Oldham; Padgett; Pascoe; Penrose; Quilter; Radley; Rowntree; Sandford; Seaton; Sherwin; Tolland; Tranter;
    Upton; Varley; Wadham; Wexford; Whitby; Winslow; Wyatt; Yardley; Zeller"""

CARRIERS = [
    ("Northwind Post", 38),
    ("Swift Parcel", 24),
    ("Gull Express", 15),
    ("Anchor Freight", 9),
    ("Pedal Couriers", 7),
    ("Redbridge Mail", 5),
    ("Island Link", 2),
]

REASONS = [
    ("damaged", 28),
    ("changed mind", 22),
    ("wrong book", 16),
    ("duplicate gift", 12),
    ("missing pages", 9),
    ("late delivery", 8),
    ("wrong edition", 5),
]

# how busy each month is, January first
SEASON = [0.8, 0.7, 0.8, 0.9, 0.9, 1.0, 1.2, 1.1, 0.9, 1.0, 1.7, 2.4]

FIRST_DAY = datetime.date(2023, 1, 2)
LAST_DAY = datetime.date(2025, 12, 30)
CENTS = (0.99, 0.49, 0.95, 0.75, 0.25)


def words(text):
    return [" ".join(part.split()) for part in text.split(";")]


class Dice:
    """The few draws the tables need, each made from one call of random()."""

    def __init__(self, seed):
        self.random = random.Random(seed).random

    def below(self, n):
        return int(self.random() * n)

    def between(self, low, high):
        return low + self.below(high - low + 1)

    def weighted(self, pairs):
        mark = self.random() * sum(weight for _, weight in pairs)
        for value, weight in pairs:
            mark -= weight
            if mark < 0:
                return value
        return pairs[-1][0]

    def shuffled(self, values):
        values = list(values)
        for i in range(len(values) - 1, 0, -1):
            j = self.below(i + 1)
            values[i], values[j] = values[j], values[i]
        return values


def make_books(dice):
    rows = []
    used_years = {}
    for genre, (typical, authors, titles) in SHELVES.items():
        authors, titles = words(authors), words(titles)
        weights = [(author, 1 / (rank + 1)) for rank, author in enumerate(authors)]
        unwritten = [author for author in authors for _ in range(2)]  # everyone on the shelf wrote one, most wrote two
        prices = set()
        for number, title in enumerate(titles):
            if title in LEAD:
                author = authors[0]
                if author in unwritten:
                    unwritten.remove(author)
            elif unwritten:
                author = unwritten.pop(0)
            else:
                author = dice.weighted(weights)
            years = used_years.setdefault(author, {FIXED_YEAR[t] for t in titles if t in LEAD and author == authors[0]})
            year = FIXED_YEAR.get(title)
            while year is None or (title not in FIXED_YEAR and year in years):
                year = 2022 - int(dice.random() ** 1.6 * 41)
            years.add(year)
            price = None
            while price is None or price in prices:
                whole = 6 + dice.below(3) if number == 3 else max(7, int(typical * (0.6 + 0.9 * dice.random())))
                price = round(whole + CENTS[dice.below(len(CENTS))], 2)
            prices.add(price)
            stock = 0 if dice.random() < 0.1 else 1 + int(dice.random() ** 2 * 40)
            rows.append((title, author, genre, price, year, stock))
        if not any(row[2] == genre and row[5] == 0 for row in rows):  # every shelf has a gap
            at = len(rows) - 1 - dice.below(len(titles))
            rows[at] = (*rows[at][:5], 0)
    return [(number, *row) for number, row in enumerate(dice.shuffled(rows), 1)]


def make_customers(dice):
    first, last = words(FIRST), words(LAST)
    names = dice.shuffled([f"{a} {b}" for a in first for b in last])[:600]
    weights = [(city, 1 / (rank + 3)) for rank, city in enumerate(words(CITIES))]
    days = dice.shuffled(range((LAST_DAY - datetime.date(2019, 3, 1)).days))  # nobody joined on the same day
    rows = []
    for number, name in enumerate(names, 1):
        user = name.lower().replace(" ", ".")
        phone = f"+44 7700 900{dice.below(1000):03d}"
        joined = datetime.date(2019, 3, 1) + datetime.timedelta(days=days[number])
        rows.append((number, name, dice.weighted(weights), f"{user}@mail.example", phone, joined.isoformat()))
    return rows


def order_dates(dice, count):
    days = [FIRST_DAY + datetime.timedelta(days=n) for n in range((LAST_DAY - FIRST_DAY).days + 1)]
    weights = [(day, SEASON[day.month - 1] * (1.3 if day.weekday() == 5 else 1.0)) for day in days]
    return sorted(dice.weighted(weights) for _ in range(count))


def make_orders(dice, customers, books):
    popular = [(row, 1 / (rank + 6) ** 0.9) for rank, row in enumerate(dice.shuffled(books))]
    buyers = [(row[0], 1 / (rank + 20) ** 0.7) for rank, row in enumerate(dice.shuffled(customers))]
    orders, lines, shipments, returned = [], [], [], []
    for number, day in enumerate(order_dates(dice, 1500), 10001):
        age = (LAST_DAY - day).days
        if dice.random() < 0.04:
            status = "cancelled"
        elif age > 12:
            status = "delivered"
        else:
            status = dice.weighted([("paid", 13 - age), ("packed", 8), ("shipped", 4 + age), ("delivered", age)])
        orders.append((number, dice.weighted(buyers), day.isoformat(), status))

        chosen = []
        for _ in range(dice.weighted([(1, 38), (2, 32), (3, 20), (4, 10)])):
            book = dice.weighted(popular)[0]
            if book not in chosen:
                chosen.append(book)
                lines.append((number, book, dice.weighted([(1, 84), (2, 12), (3, 4)])))

        if status in ("shipped", "delivered"):
            shipped = day + datetime.timedelta(days=dice.weighted([(0, 3), (1, 5), (2, 2)]))
            delivered = min(shipped + datetime.timedelta(days=dice.between(1, 7)), LAST_DAY)
            shipments.append(
                (
                    number,
                    dice.weighted(CARRIERS),
                    shipped.isoformat(),
                    delivered.isoformat() if status == "delivered" else None,
                )
            )
            if status == "delivered" and dice.random() < 0.06:
                back = delivered + datetime.timedelta(days=dice.between(2, 28))
                book = chosen[dice.below(len(chosen))]
                returned.append((len(returned) + 1, number, book, dice.weighted(REASONS), back.isoformat()))
    return orders, lines, shipments, returned


def build(path, seed=7):
    """Write the database to `path` (replaced if it exists) and return {table: number of rows}."""
    dice = Dice(seed)
    books = make_books(dice)
    customers = make_customers(dice)
    orders, lines, shipments, returned = make_orders(dice, customers, books)
    rows = dict(zip(TABLES, (customers, books, orders, lines, shipments, returned), strict=True))

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    connection = sqlite3.connect(path)
    try:
        connection.execute("PRAGMA foreign_keys = ON")
        connection.executescript(SCHEMA)
        for table in TABLES:
            marks = ", ".join("?" for _ in rows[table][0])
            connection.executemany(f"INSERT INTO {table} VALUES ({marks})", rows[table])
        connection.commit()
    finally:
        connection.close()
    return {table: len(rows[table]) for table in TABLES}


def main():
    parser = argparse.ArgumentParser(description="Build the database of Harbour Lane Books.")
    parser.add_argument("out", help="the SQLite file to write")
    parser.add_argument("--seed", type=int, default=7)
    options = parser.parse_args()
    counts = build(options.out, options.seed)
    print(
        f"{options.out}: "
        + ", ".join(f"{count} {table}" for table, count in counts.items())
        + f", {sum(counts.values())} rows in all"
    )


if __name__ == "__main__":
    main()
