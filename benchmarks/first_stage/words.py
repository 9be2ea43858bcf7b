"""Words that requests are filled with, and the kinds of value that are made of them.

A kind is a function of a random generator that gives a text as somebody would say it. Names and titles are made of parts,
some of them invented, so that a model cannot remember them and has to copy.
"""

# ruff: noqa: E501 - lists of words
from __future__ import annotations

import random
from collections.abc import Callable

# fmt: off
FIRST = """Amara Bjorn Chidi Dalia Emeka Fatima Gustav Hana Ines Jarek Kaito Leila Mateo Nadia Omar Priya Quentin Rosa
Soren Tamar Ursula Viktor Wanda Ximena Yusuf Zofia Anna Ben Clara David Ella Frank Grace Henry Iris Jack Karen Liam Mia
Noah Olga Paul Rita Sam Tina Uma Vera Will Yara Zeke mom dad grandma""".split()
LAST = """Abara Bianchi Castillo Dupont Eriksen Fischer Gomez Haddad Ivanov Jensen Kowalski Larsen Moreau Nakamura
Okafor Petrov Quispe Rossi Sato Tanaka Umarov Vargas Weber Xu Yilmaz Zhang Baker Carter Fletcher Hughes Murphy Parker
Reed Shaw Turner Walsh""".split()
CITIES = """Lagos|Oslo|Kyoto|Lima|Cairo|Porto|Quito|Hanoi|Tunis|Perth|Leeds|Bergen|Krakow|Seville|Nairobi|Bogota|Izmir|
Toronto|Chennai|Auckland|New Orleans|San Diego|Cape Town|Sao Paulo|Buenos Aires|Salt Lake City|St. Gallen|Ho Chi Minh City|
Novi Sad|Rio Branco|Las Palmas|Ulaanbaatar|Antananarivo|Reykjavik|Gdansk|Aix-en-Provence|Kuala Lumpur|Fort Worth|Malmo|
Tbilisi|Zagreb|Santa Cruz|Port Said|Bad Homburg|Stratford-upon-Avon|Ghent|Basel|Dakar|Accra|Baku"""
ROOMS = """kitchen|living room|bedroom|hallway|bathroom|garage|attic|guest room|office|nursery|basement|dining room|patio|
laundry room|upstairs corridor|library|porch|music room|workshop|kids' room|conservatory|pantry"""
DEVICES = """lamp|ceiling light|fan|heater|coffee machine|speaker|television|humidifier|blinds|sprinkler|oven|dishwasher|
air purifier|desk lamp|electric blanket|garden pump|floor lamp|radio|projector|washing machine|router|fairy lights"""
DISHES = """mushroom risotto|chicken tikka|lentil soup|pad thai|fish tacos|beef stew|spinach lasagna|apple pie|falafel wrap|
miso ramen|vegetable curry|pepperoni pizza|Greek salad|pierogi|lamb tagine|banana bread|shakshuka|tofu stir fry|goulash|
paella|bibimbap|pumpkin pancakes|onion tart|jerk chicken with rice|gluten free brownies"""
ITEMS = """oat milk|eggs|running shoes|batteries|a blue umbrella|phone case|toothpaste|cat food|garden hose|olive oil|
printer paper|wool socks|rye bread|dish soap|headphones|yoga mat|light bulbs|strawberries|screwdriver set|coffee filters|
desk chair|sunscreen|notebooks|rice cooker|bicycle pump|picture frames|green tea|winter gloves|charger cable|tomatoes"""
TASKS = """water the plants|call the plumber|pay the rent|pick up the dry cleaning|renew my passport|feed the cat|
submit the expense report|take out the recycling|book the dentist|change the bed sheets|return the library books|
send the invoice|buy a gift for {first}|check the oven|charge the camera|email {first} the slides|clean the gutters|
defrost the chicken|sign the permission slip|back up the laptop|walk the dog|ask {first} about the keys|
print the boarding passes|move the car before the street is swept|take my vitamins"""
TOPICS = """the history of glass|solar panels|how to prune roses|knitting patterns|cheap flights|electric bikes|
side effects of ibuprofen|volcanoes in Iceland|the best hiking boots|chess openings|tax deductions for freelancers|
how bees make honey|vintage cameras|remote jobs|sourdough starters|home insulation|black holes|guitar chords for beginners|
why cats purr|train strikes in France|quantum computing|how to fix a leaking tap|low sugar desserts|the price of copper"""
EVENTS = """dentist appointment|team meeting|book club|yoga class|lunch with {first}|budget review|parents evening|
piano lesson|birthday party|project kickoff|haircut|call with {first} {last}|car inspection|wine tasting|staff training|
school play|quarterly planning|movie night|dinner at {last}'s|house viewing|sprint retrospective|choir practice"""
MESSAGES = """I'm running late|the keys are under the mat|can you bring some ice|happy birthday|the train is delayed|
see you at the station|dinner is ready|don't forget the tickets|I landed safely|the meeting moved to room 12|
please call me back|we won the match|the package has arrived|I'll be there in ten minutes|what time does it start|
thanks for the flowers|the printer on the second floor is jammed again|start without me|good luck with the exam|
we need more chairs for Saturday|I left my jacket at your place|are we still on for tonight"""
GENRES = """jazz|techno|bossa nova|classical|hip hop|folk|reggae|heavy metal|lo-fi|soul|country|blues|flamenco|afrobeat|
synthwave|opera|punk|ambient|disco|bluegrass|k-pop|salsa"""
ADJ = """Silent Golden Broken Distant Electric Hollow Crimson Endless Gentle Frozen Hidden Restless Velvet Burning Lonely
Paper Wild Ancient Borrowed Quiet Little Northern Bitter Bright Falling""".split()
NOUN = """River Garden Mirror Winter Engine Harbor Lantern Sparrow Mountain Thunder Letter Ocean Shadow Orchard Station
Kingdom Window Stranger Fire Season Bridge Clock Desert Moon Wolf Summer Island Market Horizon Dream""".split()
SUBJECTS = """invoice for March|weekly report|holiday plans|new office hours|server outage|your application|lunch on Friday|
contract draft|parking permit|feedback on the demo|travel receipts|team photo|room change|quarterly numbers"""
FILES = """budget.xlsx|notes.txt|holiday photos|report_final.pdf|draft-v2.docx|main.py|invoice_0419.pdf|the tax folder|
slides.pptx|backup.zip|recipe collection|cv_2024.pdf|song.mp3|meeting minutes|todo.md|scan 003.png|wedding pictures"""
TEAMS = """Red Foxes|Harbor City|the Rockets|Northside United|Lions|Blue Whales|Inter Valley|Mountain Goats|Thunder|
Real Costa|the Pirates|Riverside FC|Polar Bears|Desert Hawks|Eagles|Old Town Rovers"""
LANGUAGES = """French|German|Japanese|Swahili|Portuguese|Hindi|Polish|Arabic|Finnish|Turkish|Vietnamese|Greek|Zulu|Dutch|
Italian|Hungarian|Tagalog|Hebrew"""
CURRENCIES = """dollars|euros|yen|pounds|pesos|rupees|Swiss francs|zloty|naira|Swedish kronor|rand|won|lira|dirhams"""
SPORTS = """football|basketball|tennis|cricket|ice hockey|volleyball|rugby|handball|baseball|badminton|water polo"""
EXERCISES = """push-ups|squats|running|rowing|cycling|yoga|swimming|planks|jumping jacks|burpees|walking|pilates|boxing"""
ANIMALS = """cat|dog|hamster|parrot|rabbit|goldfish|tortoise|ferret|pony|guinea pig"""
SYMPTOMS = """headache|sore throat|back pain|fever|runny nose|dizziness|stomach ache|stiff neck|dry cough|itchy eyes"""
COLORS = """red|warm white|blue|emerald green|purple|orange|soft pink|turquoise|amber|lavender|crimson|lime"""
PLACES = """the central station|Hotel {last}|{last} Street|the airport|City Hall|{noun} Park|the {adj} {noun}|
the nearest pharmacy|{last}'s bakery|Pier {n}|the art museum|Terminal {n}|{city}|the farmers market|{noun} Stadium|
Saint {first} Hospital|the office|university library|gate {n}|{adj} {noun} Café"""
STREETS = """{n} {noun} Street|{n} {last} Road|{n} {adj} Avenue|{last} Lane {n}|{n} Saint {first} Square"""
TITLES = """The {adj} {noun}|{noun} of {noun}s|{adj} {noun}|{noun}|The {noun} and the {noun}|{first}'s {noun}|
{adj} {noun}s|Letters to {first}|A {noun} for {first}|The {adj} {noun} of {city}|Return to {city}|Where the {noun}s Go|
{n} Nights in {city}|No {noun} for {adj} {noun}s|{first} and the {adj} {noun}|I Never Liked the {noun}|
How the {adj} {noun} Became a {noun}|{made}|{made} {noun}|The Day {first} {last} Left {city}"""
PLAYLISTS = """{genre} mix|morning {genre}|road trip|{first}'s favourites|{adj} {noun}|gym|rainy {genre}|{genre} classics|
focus|party {n}|Sunday {genre}|best of {genre}|{made} radio|dinner with {first}"""
ARTISTS = """{first} {last}|The {adj} {noun}s|{made}|{adj} {noun}|{made} {last}|{first} and the {noun}s|DJ {made}|
The {last} {noun} Band|{noun} {noun}|{last} Quartet"""
COMPANIES = """{made}|{last} & Sons|{made} Bank|{adj} {noun} Ltd|{last} Energy|{made} Air|{noun} Foods|{made} Systems"""
LISTS = """groceries|shopping|chores|packing|wish|party|hardware store|work|weekend|{first}'s birthday|books to read"""
NICKNAMES = """{first}|{first} {last}|Dr. {last}|Ms. {last}|my sister|the landlord|coach {last}|uncle {first}|{made} {last}|
my boss|Mr. {last}|aunt {first}|{first} from work|the babysitter"""
CODES = """{L}{L}{N}{N}{N}|{L}{L}-{N}{N}{N}{N}|{N}{N}{N}{N}{N}{N}|{L}{N}{N}|#{N}{N}{N}{N}|{L}{L}{L}{N}{N}"""
PHONES = """555-0{N}{N}{N}|555 0{N}{N} {N}{N}{N}|+49 555 0{N}{N}{N}{N}|(555) 010-{N}{N}{N}{N}"""
EMAILS = """{f}@example.com|{f}.{l}@example.org|{l}{N}{N}@example.net|office@{m}.example"""
PLACEKINDS = """pharmacy|Italian restaurant|petrol station|playground|coffee shop|bike repair shop|supermarket|ATM|
bookstore|sushi bar|hair salon|charging station|climbing gym|post office|dog park|bakery|tailor|flower shop"""
DICTWORDS = """ubiquitous|serendipity|to loiter|frugal|zeitgeist|candid|to thrive|eerie|hubris|plethora|gist|mundane|
nostalgia|quaint|tacit|uncanny|verbose|whim|ajar|brittle"""
TOPICWORDS = """algebra|world capitals|human anatomy|irregular verbs|the French Revolution|organic chemistry|music theory|
pottery|first aid|watercolor painting|Python programming|astronomy|creative writing|photography|Roman history|salsa dancing"""
DATES = """tomorrow|today|Monday|next Friday|Saturday|{n} March|the 3rd of July|June {n}|next week|December {n}|
the day after tomorrow|this Sunday|Wednesday|Christmas Eve|{N}/{N}/2025|2025-0{N}-1{N}|Thursday the {n}th|the weekend"""
TIMES = """7 am|noon|8:30|half past six|9 o'clock|17:45|quarter to five|10:15 pm|midnight|3pm|{N}:{D}0|six in the morning|
1{N}:05|{N} pm|6:20 am|five thirty|dawn"""
# fmt: on

ONSETS = "b br d dr f g gl h j k kl l m n p pr qu r s st t tr v w z".split()
VOWELS, ENDS = "a e i o u ai ei ou".split(), "n r l s x th nd m k sh la ro ne vi ta".split()


def invented(rng: random.Random) -> str:
    """A name that nobody has."""
    word = "".join(rng.choice(ONSETS) + rng.choice(VOWELS) for _ in range(rng.choice((1, 2, 2)))) + rng.choice(ENDS)
    return word.capitalize()


def choice(text: str, rng: random.Random) -> str:
    """One of the texts between bars, its `{…}` filled in."""
    return fill(rng.choice([part.strip() for part in text.split("|")]), rng)


PARTS: dict[str, Callable[[random.Random], str]] = {
    "first": lambda rng: rng.choice(FIRST[:-3]) if rng.random() < 0.7 else invented(rng),
    "last": lambda rng: rng.choice(LAST) if rng.random() < 0.7 else invented(rng),
    "made": invented,
    "adj": lambda rng: rng.choice(ADJ),
    "noun": lambda rng: rng.choice(NOUN),
    "city": lambda rng: choice(CITIES, rng),
    "genre": lambda rng: choice(GENRES, rng),
    "n": lambda rng: str(rng.randint(2, 28)),
    "N": lambda rng: str(rng.randint(1, 9)),
    "D": lambda rng: str(rng.randint(1, 5)),
    "L": lambda rng: rng.choice("ABCDEFGHJKLMNPRSTUVWXYZ"),
    "f": lambda rng: rng.choice(FIRST[:-3]).lower(),
    "l": lambda rng: rng.choice(LAST).lower(),
    "m": lambda rng: invented(rng).lower(),
}


def fill(text: str, rng: random.Random) -> str:
    """`text` with every `{part}` replaced."""
    out, rest = "", text
    while "{" in rest:
        before, _, rest = rest.partition("{")
        name, _, rest = rest.partition("}")
        out += before + PARTS[name](rng)
    return out + rest


def city(rng: random.Random) -> str:
    """A city, now and then one that is on no map."""
    return choice(CITIES, rng) if rng.random() < 0.85 else invented(rng)


KINDS: dict[str, Callable[[random.Random], str]] = {
    name: (lambda rng, text=text: choice(text, rng))
    for name, text in {
        "ROOM": ROOMS, "DEVICE": DEVICES, "DISH": DISHES, "ITEM": ITEMS, "TASK": TASKS, "TOPIC": TOPICS,
        "EVENT": EVENTS, "MESSAGE": MESSAGES, "GENRE": GENRES, "SUBJECT": SUBJECTS, "FILE": FILES, "TEAM": TEAMS,
        "LANGUAGE": LANGUAGES, "CURRENCY": CURRENCIES, "SPORT": SPORTS, "EXERCISE": EXERCISES, "ANIMAL": ANIMALS,
        "SYMPTOM": SYMPTOMS, "COLOR": COLORS, "PLACE": PLACES, "STREET": STREETS, "TITLE": TITLES,
        "PLAYLIST": PLAYLISTS, "ARTIST": ARTISTS, "COMPANY": COMPANIES, "LIST": LISTS, "PERSON": NICKNAMES,
        "CODE": CODES, "PHONE": PHONES, "EMAIL": EMAILS, "PLACEKIND": PLACEKINDS, "DICTWORD": DICTWORDS, "TOPICWORD": TOPICWORDS, "DATE": DATES, "TIME": TIMES, "NAME": "{first}|{first} {last}",
    }.items()
}  # fmt: skip
KINDS["CITY"] = city


def closed_set(of: str) -> dict[str, list[str]]:
    """The values of a closed set with the words that say them: of a name in ENUMS, or written out like those."""
    entries = (entry.split("=") for entry in ENUMS.get(of, of).split("|"))
    return {value.strip(): [phrase.strip() for phrase in said.split(",")] for value, said in entries}


# Closed sets by name. An episode declares some of the values only.
ENUMS = {
    "CLIMATE": "cool=cooling,cool,cold air|heat=heating,warm,heat|dry=dry,dehumidify|fan_only=fan only,just the fan|"
    "auto=automatic,auto|eco=energy saving,eco|sleep=sleep,night",
    "ON_OFF": "on=on|off=off",
    "SCENE": "movie=movie,film night,cinema|reading=reading,book|party=party|bedtime=bedtime,going to bed|"
    "away=away,nobody home|dinner=dinner,eating|romantic=romantic,date night|wake_up=wake up,good morning",
    "CLEAN": "quiet=quiet,silent|standard=normal,standard|turbo=turbo,maximum power|mop=mopping,mop|"
    "spot=spot,just this spot|edge=edge,along the walls",
    "WASH": "cotton=cotton|delicate=delicate,gentle|wool=wool,woolens|quick=quick,fast|synthetic=synthetics,"
    "synthetic|sportswear=sports clothes,sportswear",
    "PRIORITY": "low=low,not important|normal=normal,medium|high=high,important|urgent=urgent,critical",
    "SIZE": "small=small,little|medium=medium,regular|large=large,big|extra_large=extra large,the biggest",
    "DRINK": "espresso=espresso|cappuccino=cappuccino|latte=latte|green_tea=green tea|hot_chocolate="
    "hot chocolate,cocoa|iced_coffee=iced coffee,cold coffee|lemonade=lemonade",
    "CABIN": "economy=economy,coach,the cheapest class|premium_economy=premium economy|business=business|"
    "first=first class,first",
    "TRAVEL": "driving=by car,driving|walking=on foot,walking|cycling=by bike,cycling|transit=by public transport,"
    "by bus|train=by train",
    "AVOID": "tolls=tolls,toll roads|highways=highways,motorways|ferries=ferries,boats|traffic=traffic,jams",
    "REPEAT": "daily=every day,daily|weekly=every week,weekly|monthly=every month,monthly|weekdays=on weekdays,"
    "every weekday|yearly=every year,annually|never=just once,only once",
    "SORT": "price=price,cheapest first|rating=rating,best rated first|distance=distance,closest first|"
    "newest=newest first|popularity=popularity,most popular",
    "FORMAT": "pdf=PDF|csv=CSV,comma separated|docx=Word,docx|png=PNG,image|json=JSON|markdown=markdown",
    "SEAT": "window=window,by the window|aisle=aisle,on the aisle|middle=middle|front=front,front row|"
    "back=back,last row",
    "METRIC": "temperature=temperature,how warm|humidity=humidity,how humid|wind=wind,how windy|rain=rain,"
    "chance of rain|uv_index=UV,UV index|air_quality=air quality,pollution",
    "TONE": "formal=formal,official|casual=casual,relaxed|friendly=friendly,warm|funny=funny,humorous|"
    "concise=short,brief",
    "RATE": "like=like,thumbs up|dislike=dislike,thumbs down|favorite=favorite,love|skip=skip,not now",
    "DIRECTION": "forward=forward,ahead,straight on|backward=back,backwards|left=left,to the left|right=right,"
    "to the right|up=up,upwards|down=down,downwards",
    "GESTURE": "wave=wave,say hello|dance=dance,show me some moves|sit=sit down,sit|bow=bow|nod=nod|spin=spin,"
    "turn around in circles",
    "STATUS": "open=open,not done|in_progress=in progress,being worked on|done=done,finished,complete|"
    "blocked=blocked,stuck|cancelled=cancelled,dropped",
    "SHARE": "view=view,read only|comment=comment|edit=edit,make changes|owner=own,full control",
    "PAYMENT": "credit_card=credit card,card|bank_transfer=bank transfer,wire|cash=cash|paypal=PayPal|gift_card="
    "gift card,voucher",
    "PERIOD": "day=day,24 hours|week=week,seven days|month=month|quarter=quarter|year=year,twelve months",
    "DIET": "vegan=vegan,without animal products|vegetarian=vegetarian,meatless|gluten_free=gluten free|"
    "halal=halal|kosher=kosher|low_carb=low carb",
    "VIEW": "map=map|satellite=satellite,from above|terrain=terrain,relief|street=street level,street view",
    "PRESENCE": "available=available,free|busy=busy|do_not_disturb=do not disturb,no interruptions|"
    "away=away,not at my desk|invisible=invisible,hidden",
    "EFFECT": "blur=blur,blurry|sepia=sepia,old photo look|grayscale=black and white,grayscale|sharpen=sharpen,"
    "sharper|invert=invert,negative",
    "LEVEL": "easy=easy,beginner|medium=medium,intermediate|hard=hard,difficult|expert=expert,the hardest",
    "SPEED": "slow=slow,slowly|normal=normal|fast=fast,quickly",
    "QUALITY": "low=low,the lowest|medium=medium|high=high,HD|ultra=ultra,4K,the best",
    "WORKTYPE": "book=book,novel|film=film,movie|painting=painting,picture|game=game,video game|album=album,record|"
    "series=series,show",
    "UNIT": "celsius=Celsius,centigrade|fahrenheit=Fahrenheit|kelvin=Kelvin",
}
