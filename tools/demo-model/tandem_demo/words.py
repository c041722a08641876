"""Word lists the text generators draw from. Everything here was written for this project."""


def _split(text):
    return text.split()


FIRST_NAMES = _split("""
Anna Ben Carla David Elena Frank Grace Henry Ida Jack Kate Leo Maria Nina Oscar Paul Quinn Rosa Sam Tom Uma Victor Wendy
Alice Bob Chloe Daniel Emma Felix George Hannah Isaac Julia Kevin Laura Mark Nora Olivia Peter Rachel Sarah Tim Vera Will
Adam Bella Chris Diana Eric Fiona Gary Helen Ivan Jane Karl Linda Martin Nancy Otto Paula Robert Sofia Theo Ursula Vincent
Amir Bruno Clara Dora Emil Fatima Hugo Igor Jonas Kim Lucas Mia Noah Omar Pedro Rita Simon Tara Yusuf Zoe Aisha Andrew
Amanda Arthur Brian Bianca Charles Claire Dennis Eva Edward Gina Harry Iris James Jessica John Joseph Katie Lily Louis Lucy
Luis Max Michael Monica Nathan Nicole Patrick Philip Richard Ruth Ryan Sandra Scott Sophie Stephen Susan Thomas Tony Walter
""")
LAST_NAMES = _split("""
Smith Jones Brown Miller Davis Wilson Moore Taylor Anderson Jackson White Harris Martin Thompson Garcia Clark Lewis Lee Walker
Hall Allen Young King Wright Hill Green Baker Nelson Carter Mitchell Roberts Turner Phillips Campbell Parker Evans Edwards
Stewart Morris Murphy Cook Rogers Morgan Cooper Peterson Reed Bailey Bell Kelly Howard Ward Cox Richardson Wood Watson Brooks
Bennett Gray Hughes Price Myers Long Foster Sanders Ross Powell Sullivan Russell Fisher Henderson Cole West Jordan Reynolds
""")
CITIES = _split("""
Paris London Berlin Madrid Rome Vienna Prague Oslo Stockholm Helsinki Dublin Lisbon Athens Warsaw Budapest Brussels Amsterdam
Copenhagen Zurich Geneva Milan Naples Venice Barcelona Valencia Munich Hamburg Frankfurt Cologne Tokyo Osaka Kyoto Seoul
Beijing Shanghai Singapore Bangkok Delhi Mumbai Sydney Melbourne Auckland Toronto Montreal Vancouver Boston Chicago Denver
Seattle Portland Houston Dallas Austin Miami Atlanta Detroit Phoenix Cairo Nairobi Lagos Istanbul Ankara Moscow Dubai Lima
Santiago Bogota Quito Havana Manchester Liverpool Bristol Glasgow Edinburgh Cambridge Oxford Leeds York Hanoi Manila Jakarta
""") + ["New York", "San Francisco", "Los Angeles", "Buenos Aires", "Mexico City", "Hong Kong", "Cape Town", "Las Vegas"]
CAPITALS = dict(pair.split(":") for pair in _split("""
France:Paris Germany:Berlin Spain:Madrid Italy:Rome Austria:Vienna Norway:Oslo Sweden:Stockholm Finland:Helsinki
Ireland:Dublin Portugal:Lisbon Greece:Athens Poland:Warsaw Hungary:Budapest Belgium:Brussels Denmark:Copenhagen Japan:Tokyo
China:Beijing Thailand:Bangkok Egypt:Cairo Kenya:Nairobi Turkey:Ankara Russia:Moscow Peru:Lima Chile:Santiago Cuba:Havana
Canada:Ottawa Vietnam:Hanoi Indonesia:Jakarta England:London Scotland:Edinburgh
"""))
ANIMALS = _split("""
cat dog horse cow sheep goat pig duck hen fox wolf bear lion tiger mouse rabbit frog fish bird owl eagle snake whale shark
monkey elephant camel deer bee ant spider turtle dragon penguin parrot crow swan otter hamster donkey crab seal
""")
FOODS = _split("""
apple banana orange lemon cherry grape pear peach bread butter cheese milk rice pasta soup salad pizza cake coffee tea sugar
salt pepper egg fish chicken beef potato tomato onion carrot corn honey chocolate cookie sandwich juice water wine beer flour
oil garlic mushroom olive bean nut yogurt strawberry melon plum mango
""")
THINGS = _split("""
table chair lamp book pen paper phone clock mirror window door key bag box bottle cup glass plate knife spoon bed pillow
carpet camera radio guitar piano drum ball bike car bus train boat plane ship truck hammer nail rope ladder basket candle map
coin ring hat coat shirt shoe sock glove umbrella wallet ticket letter card brush towel laptop keyboard screen cable battery
garden bridge tower castle river mountain forest lake island beach road street market school library museum station hotel
engine wheel tree flower stone cloud star moon sun
""")
ADJECTIVES = _split("""
red blue green yellow black white small big old new young happy sad quick slow bright dark warm cold soft hard loud quiet
brave kind clever strange gentle proud shy busy lazy hungry tired rich poor tall short long wide deep heavy light clean dirty
sweet bitter fresh dry wet sharp round flat simple golden silver wooden lonely curious honest patient
""")
VERBS_PAST = _split("""
found lost saw heard carried opened closed painted fixed built sold bought hid made cleaned followed moved washed
dropped kept wanted needed liked loved watched drew lifted pushed pulled
""")
COLOURS = _split("red blue green yellow black white brown orange purple pink grey gold silver")
JOBS = _split("""
teacher doctor nurse baker farmer painter singer writer driver pilot engineer lawyer student cook gardener tailor sailor
soldier actor dancer judge chef clerk dentist plumber builder designer manager musician scientist librarian mechanic
""")
DAYS = _split("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
MONTHS = _split("January February March April May June July August September October November December")
MONTH_DAYS = [31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31]
NUMBER_WORDS = _split("""
zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen
nineteen twenty
""")

# Parts of function and parameter names. The combinations are split into training and held-out by their hash.
TOOL_VERBS = _split("""
get set find search list create delete update add remove send read write open close start stop check count convert compute
calculate book cancel play pause turn move copy print show hide lock unlock save load fetch query order buy sell rent track
measure translate schedule plan assign invite notify publish upload download export import rename sort filter merge split
reset enable disable lookup estimate validate resolve register report log run build deploy scan inspect compare review
approve reject archive restore refresh monitor format parse render draw paint clean wash water feed call message reply
""")
TOOL_NOUNS = _split("""
weather time date user order file folder email message event meeting task note contact invoice payment account balance
product price stock ticket flight hotel room table car train route map location city country address phone number image
photo video song album playlist movie book page article document report comment post tag project issue branch commit
server device lamp light door window heater alarm timer reminder calendar recipe meal plant garden pet customer employee
team department budget expense record row column database index key value token session password setting profile score
game player level item cart discount coupon review rating forecast temperature distance speed weight currency language
status job queue model dataset sensor camera printer package delivery backup log metric chart label menu seat
""")
ID_PREFIXES = _split("A B C X K T R Z AB CX TK RM ID ORD INV REF")

SYLLABLES = _split("""
ba be bi bo bu da de di do du fa fe fi fo ga go gu ha he ho ka ke ki ko ku la le li lo lu ma me mi mo mu na ne ni no nu pa pe
pi po ra re ri ro ru sa se si so su ta te ti to tu va ve vi vo wa we wi ya yo za ze zi zo bra dro fli gra kri pla sko tri
""")
CODAS = ["", "", "", "n", "r", "s", "t", "l", "m", "x", "k", "d", "p", "nd", "rt", "ng"]
SUFFIXES = _split("Lang Core Net Box Lab Hub Soft Mind Flow Graph Byte Link Stack Cloud Wave Ware Bot Star Tron Kit")
PREFIXES = _split("SG LL My Py Go Neo Turbo Open Deep Fast Data Meta Micro Web Tensor Smart Blue Red Auto Cyber Hyper GPT AI ML v")


def pseudo_word(rng, low=2, high=3):
    """A pronounceable made-up word."""
    count = rng.randint(low, high)
    return "".join(rng.choice(SYLLABLES) for _ in range(count)) + rng.choice(CODAS)


def mixed_word(rng):
    """A made-up product-like name in mixed case, such as NeoByte or SGLang."""
    kind = rng.random()
    if kind < 0.45:
        return rng.choice(PREFIXES) + rng.choice(SUFFIXES)
    if kind < 0.6:
        return pseudo_word(rng, 1, 2).capitalize() + rng.choice(SUFFIXES)
    if kind < 0.7:
        return rng.choice(PREFIXES) + pseudo_word(rng, 1, 2)
    if kind < 0.85:
        return pseudo_word(rng).capitalize()
    return pseudo_word(rng)
