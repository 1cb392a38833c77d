package proxy

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	_ "time/tzdata" // rules name time zones, and the image has no files of them
	"unicode/utf8"

	"github.com/antlr4-go/antlr/v4"
	"github.com/google/cel-go/cel"
	"github.com/google/cel-go/checker"
	"github.com/google/cel-go/common/ast"
	"github.com/google/cel-go/common/env"
	"github.com/google/cel-go/common/overloads"
	"github.com/google/cel-go/common/types"
	"github.com/google/cel-go/common/types/ref"
	"github.com/google/cel-go/common/types/traits"
	"github.com/google/cel-go/ext"
	"github.com/google/cel-go/parser/gen"

	"github.com/tabard-id/tabard/idp"
)

const (
	maxExpression = 4 << 10 // bytes
	maxNodes      = 2_000   // of an expression, with what macros make of it
	maxCost       = 100_000 // of one evaluation, in CEL's units: some milliseconds

	// What costs are estimated with. Longer input is no danger: then the cost goes up in
	// proportion, or the expression has a limit when it is run.
	likelyText   = 256
	likelyPath   = 4 << 10
	likelyGroups = 512
)

// CEL reserves the word namespace, so expressions are given to it with another of the same
// length in its place.
const (
	reserved = "namespace"
	standIn  = "Namespace"
)

// unreserve replaces the variable namespace, as CEL's own lexer sees it.
func unreserve(text string) string {
	lexer := gen.NewCELLexer(antlr.NewInputStream(text))
	lexer.RemoveErrorListeners() // the parser complains better
	runes, before := []rune(text), antlr.TokenInvalidType
	for t := lexer.NextToken(); t.GetTokenType() != antlr.TokenEOF; t = lexer.NextToken() {
		if t.GetTokenType() == gen.CELLexerIDENTIFIER && before != gen.CELLexerDOT && t.GetText() == reserved {
			copy(runes[t.GetStart():], []rune(standIn))
		}
		if t.GetChannel() == antlr.TokenDefaultChannel { // not blanks and comments
			before = t.GetTokenType()
		}
	}
	return string(runes)
}

// variables are what an expression knows of a request.
var variables = [...]struct {
	name string
	kind *cel.Type
	of   func(*Input) ref.Val
}{
	{"user", cel.StringType, func(in *Input) ref.Val { return types.String(in.User) }},
	{"groups", cel.ListType(cel.StringType), func(in *Input) ref.Val { return newNames(in.Groups) }},
	{"verb", cel.StringType, func(in *Input) ref.Val { return types.String(in.Verb) }},
	{"resource", cel.StringType, func(in *Input) ref.Val { return types.String(in.Resource) }},
	{"subresource", cel.StringType, func(in *Input) ref.Val { return types.String(in.Subresource) }},
	{"apiGroup", cel.StringType, func(in *Input) ref.Val { return types.String(in.APIGroup) }},
	{standIn, cel.StringType, func(in *Input) ref.Val { return types.String(in.Namespace) }},
	{"name", cel.StringType, func(in *Input) ref.Val { return types.String(in.Name) }},
	{"path", cel.StringType, func(in *Input) ref.Val { return types.String(in.Path) }},
	{"now", cel.TimestampType, func(in *Input) ref.Val { return types.Timestamp{Time: in.Now} }},
	{"source.ip", cel.StringType, func(in *Input) ref.Val { return types.String(in.SourceIP) }},
	{"session.age", cel.DurationType, func(in *Input) ref.Val { return types.Duration{Duration: in.SessionAge} }},
	{"session.mfa", cel.BoolType, func(in *Input) ref.Val { return types.Bool(in.MFA) }},
}

// activation gives an expression its variables. Each becomes a CEL value when it is first
// asked for, and all the rules of a decision share it.
type activation struct {
	in     *Input
	values [len(variables)]ref.Val
}

func (a *activation) Parent() cel.Activation { return nil }

func (a *activation) ResolveName(name string) (any, bool) {
	for i := range variables {
		if variables[i].name != name {
			continue
		}
		if a.values[i] == nil {
			a.values[i] = variables[i].of(a.in)
		}
		return a.values[i], true
	}
	return nil, false
}

// names is a list of strings in which one is found without making a value of each, and
// whose values are made once however often it is gone through.
type names struct {
	traits.Lister
	list   []string
	values traits.Lister
}

func newNames(list []string) *names {
	return &names{Lister: types.NewStringList(types.DefaultTypeAdapter, list), list: list}
}

// Contains implements traits.Container.
func (n *names) Contains(v ref.Val) ref.Val {
	if s, ok := v.(types.String); ok {
		return types.Bool(slices.Contains(n.list, string(s)))
	}
	return n.Lister.Contains(v)
}

// Iterator implements traits.Iterable.
func (n *names) Iterator() traits.Iterator {
	if n.values == nil {
		values := make([]ref.Val, len(n.list))
		for i, s := range n.list {
			values[i] = types.String(s)
		}
		n.values = types.NewRefValList(types.DefaultTypeAdapter, values)
	}
	return n.values.Iterator()
}

// zoned are the functions that take a time zone, such as now.getHours('Europe/Berlin').
// They are ours because CEL's read the zone's file each time.
var zoned = [...]struct {
	name, overload string
	of             func(time.Time) int
}{
	{overloads.TimeGetFullYear, overloads.TimestampToYearWithTz, time.Time.Year},
	{overloads.TimeGetMonth, overloads.TimestampToMonthWithTz, func(t time.Time) int { return int(t.Month()) - 1 }},
	{overloads.TimeGetDate, overloads.TimestampToDayOfMonthOneBasedWithTz, time.Time.Day},
	{overloads.TimeGetDayOfMonth, overloads.TimestampToDayOfMonthZeroBasedWithTz, func(t time.Time) int { return t.Day() - 1 }},
	{overloads.TimeGetDayOfYear, overloads.TimestampToDayOfYearWithTz, func(t time.Time) int { return t.YearDay() - 1 }},
	{overloads.TimeGetDayOfWeek, overloads.TimestampToDayOfWeekWithTz, func(t time.Time) int { return int(t.Weekday()) }},
	{overloads.TimeGetHours, overloads.TimestampToHoursWithTz, time.Time.Hour},
	{overloads.TimeGetMinutes, overloads.TimestampToMinutesWithTz, time.Time.Minute},
	{overloads.TimeGetSeconds, overloads.TimestampToSecondsWithTz, time.Time.Second},
	{overloads.TimeGetMilliseconds, overloads.TimestampToMillisecondsWithTz, func(t time.Time) int { return t.Nanosecond() / 1e6 }},
}

// expressions compiles what rules say.
type expressions struct {
	env   *cel.Env
	zones map[string]*time.Location // that they name; not changed after the last was compiled
}

func newExpressions() (*expressions, error) {
	x := &expressions{zones: map[string]*time.Location{}}
	theirs := make([]*env.Function, 0, len(zoned))
	options := make([]cel.EnvOption, 1, len(variables)+len(zoned)+8)
	for _, z := range zoned {
		theirs = append(theirs, env.NewFunction(z.name, &env.Overload{ID: z.overload}))
		options = append(options, cel.Function(z.name, cel.MemberOverload(z.overload,
			[]*cel.Type{cel.TimestampType, cel.StringType}, cel.IntType, cel.BinaryBinding(x.inZone(z.of)))))
	}
	options[0] = cel.StdLib(cel.StdLibSubset(env.NewLibrarySubset().AddExcludedFunctions(theirs...)))
	for _, v := range variables {
		options = append(options, cel.Variable(v.name, v.kind))
	}
	options = append(options, cel.EagerlyValidateDeclarations(true), ext.Strings(), ext.Network(),
		cel.ParserExpressionSizeLimit(maxExpression), cel.ExpressionNodeLimit(maxNodes), cel.ParserRecursionLimit(64), cel.RegexProgramSizeLimit(1_000),
		cel.ASTValidators(cel.ValidateDurationLiterals(), cel.ValidateTimestampLiterals(), cel.ValidateRegexLiterals(),
			cel.ValidateHomogeneousAggregateLiterals(), cel.ValidateComprehensionNestingLimit(3)))
	var err error
	if x.env, err = cel.NewCustomEnv(options...); err != nil {
		return nil, fmt.Errorf("set up CEL: %w", err)
	}
	return x, nil
}

func (x *expressions) inZone(of func(time.Time) int) func(ref.Val, ref.Val) ref.Val {
	return func(at, zone ref.Val) ref.Val {
		t, ok := at.(types.Timestamp)
		name, named := zone.(types.String)
		if !ok || !named || x.zones[string(name)] == nil {
			return types.NewErr("no such time zone")
		}
		return types.Int(of(t.In(x.zones[string(name)])))
	}
}

// expression is one compiled rule's when.
type expression struct {
	program cel.Program
	now     bool // looks at the time
	timed   bool // looks at the time or at the session's age
}

// compile returns a *idp.FieldError at path for each mistake, joined.
func (x *expressions) compile(path, text string) (*expression, error) {
	if strings.TrimSpace(text) == "" {
		return nil, wrong(path, "write a CEL expression that is true for the requests meant, e.g. verb == 'delete'")
	}
	if len(text) > maxExpression || !utf8.ValidString(text) {
		return nil, wrong(path, "must be UTF-8 text of at most %d bytes: write several rules", maxExpression)
	}
	checked, issues := x.env.Compile(unreserve(text))
	if issues.Err() != nil {
		return nil, mistakes(path, issues)
	}
	if !checked.OutputType().IsExactType(cel.BoolType) {
		return nil, wrong(path, "is of type %s where a bool is wanted: write a condition, e.g. verb == 'delete'", checked.OutputType())
	}
	e := &expression{}
	for _, r := range checked.NativeRep().ReferenceMap() {
		e.now = e.now || r.Name == "now"
		e.timed = e.timed || r.Name == "now" || r.Name == "session.age"
	}
	if err := x.nameZones(path, checked); err != nil {
		return nil, err
	}
	options := []cel.ProgramOption{cel.EvalOptions(cel.OptOptimize)}
	if cost, err := x.env.EstimateCost(checked, sizes{}); err != nil || cost.Max > maxCost {
		options = append(options, cel.CostLimit(maxCost)) // to count is slow, so only where it may be needed
	}
	var err error
	if e.program, err = x.env.Program(checked, options...); err != nil {
		return nil, wrong(path, "cannot be made a program: %s", oneLine(err.Error()))
	}
	return e, nil
}

// holds evaluates the expression.
func (e *expression) holds(a *activation) (bool, error) {
	v, _, err := e.program.Eval(a)
	if err != nil {
		return false, errors.New(oneLine(err.Error()))
	}
	return v == types.True, nil
}

// nameZones reads each time zone that is named.
func (x *expressions) nameZones(path string, checked *cel.Ast) error {
	var f idp.Faults
	refs := checked.NativeRep().ReferenceMap()
	ast.PreOrderVisit(checked.NativeRep().Expr(), ast.NewExprVisitor(func(e ast.Expr) {
		if e.Kind() != ast.CallKind || len(e.AsCall().Args()) != 1 || !takesZone(refs[e.ID()]) {
			return
		}
		arg := e.AsCall().Args()[0]
		name, ok := "", false
		if arg.Kind() == ast.LiteralKind {
			name, ok = arg.AsLiteral().Value().(string)
		}
		if !ok {
			f.Wrong(path, "%s: write the time zone as text, e.g. 'Europe/Berlin'", e.AsCall().FunctionName())
			return
		}
		zone, err := loadZone(name)
		if err != nil {
			f.Wrong(path, "there is no time zone %.40q here: write its name, e.g. 'Europe/Berlin', or its distance from UTC, e.g. '+02:00'", name)
			return
		}
		x.zones[name] = zone
	}))
	return f.Err()
}

func takesZone(r *ast.ReferenceInfo) bool {
	if r == nil {
		return false
	}
	for _, id := range r.OverloadIDs {
		for _, z := range zoned {
			if z.overload == id {
				return true
			}
		}
	}
	return false
}

func loadZone(name string) (*time.Location, error) {
	if t, err := time.Parse("-07:00", name); err == nil {
		_, east := t.Zone()
		return time.FixedZone(name, east), nil
	}
	if name == "" || name == "Local" { // of this machine: another node may be elsewhere
		return nil, errors.New("not a time zone")
	}
	return time.LoadLocation(name)
}

// mistakes puts each of CEL's messages on one line.
func mistakes(path string, issues *cel.Issues) error {
	var f idp.Faults
	for i, e := range issues.Errors() {
		if i == 5 {
			break
		}
		hint := ""
		if strings.HasPrefix(e.Message, "undeclared reference") {
			hint = ": the variables are " + variableNames()
		}
		place := ""
		if e.Location.Line() > 0 {
			place = fmt.Sprintf("line %d, column %d: ", e.Location.Line(), e.Location.Column()+1)
		}
		f.Wrong(path, "%s%s%s", place, oneLine(e.Message), hint)
	}
	return f.Err()
}

func variableNames() string {
	list := make([]string, len(variables))
	for i, v := range variables {
		list[i] = v.name
	}
	return strings.Replace(strings.Join(list, ", "), standIn, reserved, 1)
}

// oneLine is at most 200 bytes of s without line breaks or other control characters.
func oneLine(s string) string {
	s = strings.Join(strings.FieldsFunc(strings.ToValidUTF8(s, "?"), func(r rune) bool { return r < ' ' || r == 0x7f }), " ")
	if len(s) <= 200 {
		return s
	}
	end := 200
	for !utf8.RuneStart(s[end]) {
		end--
	}
	return s[:end] + "…"
}

// sizes says how large what comes from outside is likely to be at most.
type sizes struct{}

func (sizes) EstimateSize(n checker.AstNode) *checker.SizeEstimate {
	switch {
	case n.Type() != nil && n.Type().Kind() == types.ListKind && len(n.Path()) == 1:
		return &checker.SizeEstimate{Max: likelyGroups}
	case slices.Equal(n.Path(), []string{"path"}):
		return &checker.SizeEstimate{Max: likelyPath}
	case len(n.Path()) > 0:
		return &checker.SizeEstimate{Max: likelyText}
	}
	return nil
}

func (sizes) EstimateCallCost(string, string, *checker.AstNode, []checker.AstNode) *checker.CallEstimate {
	return nil
}
