package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/tabard-id/tabard/internal/api"
)

// edits are what flags say of a group's settings.
type edits struct {
	description              string
	owners, clusters, labels []string
	addOwners, removeOwners  []string
	requestable              bool
}

// settings are those of a new group.
func (e *edits) settings(name string) (api.Settings, error) {
	set := api.Settings{Name: name, Description: e.description, Clusters: e.clusters, Requestable: e.requestable}
	for _, o := range e.owners {
		set.Owners = append(set.Owners, ownerRef(o))
	}
	for _, l := range e.labels {
		k, v, ok := strings.Cut(l, "=")
		if !ok || k == "" {
			return set, usageError{fmt.Errorf("--label %s: write key=value", l)}
		}
		if set.Labels == nil {
			set.Labels = map[string]string{}
		}
		set.Labels[k] = v
	}
	return set, nil
}

// ownerRef reads an owner as people write one: only directory groups have a colon.
func ownerRef(s string) api.Ref {
	if name, local := strings.CutPrefix(s, "group:"); local {
		return api.Ref{Kind: api.KindGroup, Name: name}
	}
	if strings.Contains(s, ":") {
		return api.Ref{Kind: api.KindDirectoryGroup, ID: s}
	}
	return api.Ref{Kind: api.KindPerson, ID: s}
}

func (f *groupsFlags) edit() *cobra.Command {
	var e edits
	cmd := f.command("edit GROUP", "Change the settings of a local group", cobra.ExactArgs(1), func(cmd *cobra.Command, c *api.Client, args []string) error {
		g, err := c.Group(cmd.Context(), args[0])
		if err != nil {
			return missing(args[0], err)
		}
		patch, err := e.patch(cmd, g)
		if err != nil {
			return err
		}
		if _, err := c.EditGroup(cmd.Context(), g.Name, g.ETag, patch); err != nil {
			return err
		}
		return tell(cmd, "group %s changed", g.Name)
	})
	cmd.Flags().StringVar(&e.description, "description", "", "what the group is for")
	cmd.Flags().StringArrayVar(&e.addOwners, "add-owner", nil, "a login, subject, corp:devs, or group:NAME for a local group; may be repeated")
	cmd.Flags().StringArrayVar(&e.removeOwners, "remove-owner", nil, "an owner to take away; may be repeated")
	cmd.Flags().StringArrayVar(&e.clusters, "cluster", nil, "the clusters that it counts on from now on, one by one; \"\" for all")
	cmd.Flags().StringArrayVarP(&e.labels, "label", "l", nil, "a label: key=value sets it, key- takes it away; may be repeated")
	cmd.Flags().BoolVar(&e.requestable, "requestable", false, "people may ask to be let in; --requestable=false ends it")
	return cmd
}

// patch is the JSON merge patch that the flags given make of g.
func (e *edits) patch(cmd *cobra.Command, g api.Group) (map[string]any, error) {
	patch := map[string]any{}
	if cmd.Flags().Changed("description") {
		patch["description"] = e.description
	}
	if cmd.Flags().Changed("requestable") {
		patch["requestable"] = e.requestable
	}
	if cmd.Flags().Changed("cluster") {
		patch["clusters"] = e.clusters
		if len(e.clusters) == 1 && e.clusters[0] == "" {
			patch["clusters"] = nil
		}
	}
	labels := map[string]any{}
	for _, l := range e.labels {
		k, v, sets := strings.Cut(l, "=")
		gone, takes := strings.CutSuffix(l, "-")
		switch {
		case sets && k != "":
			labels[k] = v
		case !sets && takes && gone != "":
			labels[gone] = nil
		default:
			return nil, usageError{fmt.Errorf("--label %s: write key=value to set it, key- to take it away", l)}
		}
	}
	if len(labels) > 0 {
		patch["labels"] = labels
	}
	if len(e.addOwners)+len(e.removeOwners) > 0 {
		owners, err := changeOwners(g, e.addOwners, e.removeOwners)
		if err != nil {
			return nil, err
		}
		patch["owners"] = owners
	}
	if len(patch) == 0 {
		return nil, usageError{errors.New("groups edit: say what to change: --description, --add-owner, --remove-owner, --cluster, --label or --requestable")}
	}
	return patch, nil
}

// changeOwners returns g's owners with some more and some fewer.
func changeOwners(g api.Group, add, remove []string) ([]api.Ref, error) {
	owners := []api.Ref{}
	gone := map[string]bool{}
	for _, o := range g.Owners {
		taken := false
		for _, r := range remove {
			ref := ownerRef(r)
			if ref.Kind == o.Kind && (ref.ID == o.ID || ref.Name == o.Name && ref.Name != "" || o.Kind == api.KindPerson && strings.EqualFold(ref.ID, o.Name)) {
				taken, gone[r] = true, true
			}
		}
		if !taken {
			owners = append(owners, o)
		}
	}
	for _, r := range remove {
		if !gone[r] {
			return nil, fmt.Errorf("%s is no owner of %s: `tabard groups show %s` lists them", r, g.Name, g.Name)
		}
	}
	for _, a := range add {
		owners = append(owners, ownerRef(a))
	}
	return owners, nil
}

func (f *groupsFlags) rename() *cobra.Command {
	return f.command("rename GROUP NAME", "Give a local group another name; members, owners and its history stay", cobra.ExactArgs(2), func(cmd *cobra.Command, c *api.Client, args []string) error {
		g, err := c.Group(cmd.Context(), args[0])
		if err != nil {
			return missing(args[0], err)
		}
		renamed, err := c.EditGroup(cmd.Context(), g.Name, g.ETag, map[string]any{"name": args[1]})
		if err != nil {
			return err
		}
		warn(cmd, renamed)
		return tell(cmd, "group %s is %s now: bindings in clusters that name it need the new name", g.Name, renamed.Name)
	})
}
