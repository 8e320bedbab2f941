// Writes what Go's own text/template makes of our templates, as golden files for the tests.
//
//	cd tests/golden/gotemplate && go run make_golden.go
//
// The data types have the shape in which Ollama hands conversations to its templates.

//go:build ignore

package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"text/template"
)

type ToolProperty struct {
	AnyOf       []ToolProperty `json:"anyOf,omitempty"`
	Type        PropertyType   `json:"type,omitempty"`
	Items       any            `json:"items,omitempty"`
	Description string         `json:"description,omitempty"`
	Enum        []any          `json:"enum,omitempty"`
	Properties  Properties     `json:"properties,omitempty"`
	Required    []string       `json:"required,omitempty"`
}

type PropertyType []string

func (p PropertyType) String() string {
	switch len(p) {
	case 0:
		return ""
	case 1:
		return p[0]
	}
	return fmt.Sprintf("%v", []string(p))
}

func (p PropertyType) MarshalJSON() ([]byte, error) {
	if len(p) == 1 {
		return json.Marshal(p[0])
	}
	return json.Marshal([]string(p))
}

func (p *PropertyType) UnmarshalJSON(data []byte) error {
	var one string
	if json.Unmarshal(data, &one) == nil {
		*p = PropertyType{one}
		return nil
	}
	return json.Unmarshal(data, (*[]string)(p))
}

type Properties map[string]ToolProperty

func (p Properties) String() string { return text(p) }

type Parameters struct {
	Type       string     `json:"type"`
	Defs       any        `json:"$defs,omitempty"`
	Items      any        `json:"items,omitempty"`
	Required   []string   `json:"required,omitempty"`
	Properties Properties `json:"properties"`
}

type Function struct {
	Name        string     `json:"name"`
	Description string     `json:"description"`
	Parameters  Parameters `json:"parameters"`
}

func (f Function) String() string { return text(f) }

type Tool struct {
	Type     string   `json:"type"`
	Items    any      `json:"items,omitempty"`
	Function Function `json:"function"`
}

func (t Tool) String() string { return text(t) }

type Tools []Tool

func (t Tools) String() string { return text(t) }

type Arguments map[string]any

func (a Arguments) String() string { return text(a) }

type CallFunction struct {
	Index     int       `json:"index"`
	Name      string    `json:"name"`
	Arguments Arguments `json:"arguments"`
}

type ToolCall struct {
	ID       string       `json:"id,omitempty"`
	Function CallFunction `json:"function"`
}

type Message struct {
	Role       string     `json:"role"`
	Content    string     `json:"content"`
	Thinking   string     `json:"thinking,omitempty"`
	Images     [][]byte   `json:"images,omitempty"`
	ToolCalls  []ToolCall `json:"tool_calls,omitempty"`
	ToolName   string     `json:"tool_name,omitempty"`
	ToolCallID string     `json:"tool_call_id,omitempty"`
}

type Conversation struct {
	Messages []*Message `json:"messages"`
	Tools    Tools      `json:"tools"`
	Think    any        `json:"think"`
}

func text(v any) string {
	b, err := json.Marshal(v)
	must(err)
	return string(b)
}

var typeNames = map[string]string{
	"string": "string", "number": "number", "integer": "number", "boolean": "boolean",
	"array": "any[]", "object": "Record<string, any>", "null": "null",
}

var funcs = template.FuncMap{
	"json":          func(v any) string { b, _ := json.Marshal(v); return string(b) },
	"currentDate":   func(...string) string { return "2026-08-20" },
	"yesterdayDate": func(...string) string { return "2026-08-19" },
	"toTypeScriptType": func(p ToolProperty) string {
		var names []string
		for _, name := range p.Type {
			if known, ok := typeNames[name]; ok {
				names = append(names, known)
			} else {
				names = append(names, "any")
			}
		}
		if len(names) == 0 {
			return "any"
		}
		return strings.Join(names, " | ")
	},
}

func parse(source string) (*template.Template, error) {
	return template.New("").Option("missingkey=zero").Funcs(funcs).Parse(source)
}

func render(source string, data any) string {
	parsed, err := parse(source)
	must(err)
	var out strings.Builder
	must(parsed.Execute(&out, data))
	return out.String()
}

// chat renders a conversation as Ollama does. A template without .Messages must have its
// {{ .Response }} outside all blocks, because the last turn is cut there as text.
func chat(source string, c Conversation) string {
	var system []string
	for _, m := range c.Messages {
		if m.Role == "system" {
			system = append(system, m.Content)
		}
	}
	think, _ := c.Think.(bool)
	level, named := c.Think.(string)
	if think {
		level = "medium"
	}
	thinking := map[string]any{
		"Think": think || named, "ThinkLevel": level, "IsThinkSet": c.Think != nil,
	}
	if strings.Contains(source, ".Messages") {
		data := map[string]any{
			"System": strings.Join(system, "\n\n"), "Messages": c.Messages, "Tools": c.Tools,
			"Response": "",
		}
		for key, value := range thinking {
			data[key] = value
		}
		return render(source, data)
	}
	var out strings.Builder
	turn := map[string]any{"System": "", "Prompt": "", "Response": ""}
	empty := func(keys ...string) bool {
		for _, key := range keys {
			if turn[key] != "" {
				return false
			}
		}
		return true
	}
	for _, m := range c.Messages {
		switch m.Role {
		case "system":
			if !empty("Prompt", "Response") {
				out.WriteString(render(source, turn))
				turn = map[string]any{"System": "", "Prompt": "", "Response": ""}
			}
			turn["System"] = m.Content
		case "user":
			if !empty("Response") {
				out.WriteString(render(source, turn))
				turn = map[string]any{"System": "", "Prompt": "", "Response": ""}
			}
			turn["Prompt"] = m.Content
		case "assistant":
			turn["Response"] = m.Content
		}
	}
	head, _, found := strings.Cut(source, "{{ .Response }}")
	if found {
		head += "{{ .Response }}"
	}
	out.WriteString(render(head, turn))
	return out.String()
}

// plain turns JSON into what our tests hand to a template: whole numbers are ints.
func plain(v any) any {
	switch v := v.(type) {
	case json.Number:
		if n, err := v.Int64(); err == nil {
			return int(n)
		}
		f, err := v.Float64()
		must(err)
		return f
	case []any:
		out := make([]any, len(v))
		for i, e := range v {
			out[i] = plain(e)
		}
		return out
	case map[string]any:
		out := make(map[string]any, len(v))
		for k, e := range v {
			out[k] = plain(e)
		}
		return out
	}
	return v
}

type Case struct {
	Name     string  `json:"name"`
	Template string  `json:"template"`
	Output   *string `json:"output,omitempty"`
	Refused  string  `json:"refused,omitempty"`
	Failed   string  `json:"failed,omitempty"`
}

type Semantics struct {
	Data  json.RawMessage `json:"data"`
	Cases []Case          `json:"cases"`
}

// semantics fills the results of all cases into semantics.json, one case a line.
func semantics() {
	data, err := os.ReadFile("semantics.json")
	must(err)
	var all Semantics
	must(json.Unmarshal(data, &all))
	decoder := json.NewDecoder(bytes.NewReader(all.Data))
	decoder.UseNumber()
	var raw any
	must(decoder.Decode(&raw))
	var out bytes.Buffer
	fmt.Fprintf(&out, "{\n\"data\": %s,\n\"cases\": [", all.Data)
	for i, c := range all.Cases {
		if i > 0 {
			out.WriteByte(',')
		}
		out.WriteByte('\n')
		out.Write(line(solved(c, plain(raw))))
	}
	out.WriteString("\n]\n}\n")
	must(os.WriteFile("semantics.json", out.Bytes(), 0o644))
}

func solved(c Case, data any) Case {
	c.Output, c.Refused, c.Failed = nil, "", ""
	parsed, err := parse(c.Template)
	if err != nil {
		c.Refused = err.Error()
		return c
	}
	var out strings.Builder
	if err := parsed.Execute(&out, data); err != nil {
		c.Failed = err.Error()
		return c
	}
	made := strings.ToValidUTF8(out.String(), "\ufffd")
	c.Output = &made
	return c
}

func line(v any) []byte {
	var out bytes.Buffer
	encoder := json.NewEncoder(&out)
	encoder.SetEscapeHTML(false)
	must(encoder.Encode(v))
	return bytes.TrimSpace(out.Bytes())
}

func formats() {
	data, err := os.ReadFile("conversations.json")
	must(err)
	var conversations map[string]Conversation
	must(json.Unmarshal(data, &conversations))
	names := make([]string, 0, len(conversations))
	for name := range conversations {
		names = append(names, name)
	}
	sort.Strings(names)
	sources, err := filepath.Glob("formats/*.gotmpl")
	must(err)
	for _, path := range sources {
		source, err := os.ReadFile(path)
		must(err)
		var out strings.Builder
		for _, name := range names {
			c := conversations[name]
			if c.Tools != nil && !strings.Contains(string(source), ".Tools") {
				continue
			}
			fmt.Fprintf(&out, "==== %s\n%s\n", name, chat(string(source), c))
		}
		must(os.WriteFile(strings.TrimSuffix(path, ".gotmpl")+".txt", []byte(out.String()), 0o644))
	}
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}

func main() {
	semantics()
	formats()
}
